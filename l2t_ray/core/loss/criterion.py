"""A loss of rows, called as `torch.nn.CrossEntropyLoss` is: its shapes, options and dtypes, with the same meanings.

What a row's loss is, a family says (`family.RowFamily`). Where that is -log p_label, all of this equals torch's.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
RowLosses = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(logits [n, c], labels [n], memory [n, c] or None) -> losses [n]`."""


@dataclass(frozen=True)
class Options:
    """As those of `torch.nn.CrossEntropyLoss`. Class weights stand apart: they are a tensor, and move with a module.

    Raises:
        ValueError: if one of them is none.
    """

    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {self.reduction!r}.")
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise ValueError(f"ignore_index must be a whole number, got {self.ignore_index!r}.")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {self.label_smoothing!r}.")


def class_weights(given: object) -> Tensor | None:
    """
    Raises:
        ValueError: if these are no weights of classes.
    """
    if given is None:
        return None
    weight = torch.as_tensor(given).detach().clone()
    if weight.ndim != 1 or weight.dtype == torch.bool or not all(0 <= w < math.inf for w in weight.tolist()):
        raise ValueError(f"weight must be one finite number from 0 on for each class, got {given!r}.")
    return weight if weight.is_floating_point() else weight.float()


def criterion(
    row_losses: RowLosses,
    logits: Tensor,
    targets: Tensor,
    options: Options,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    memory: Tensor | None = None,
) -> Tensor:
    """The loss of logits `[n, c]`, `[n, c, d1, ...]` or, of one example, `[c]`.

    A row that is ignored counts nowhere and gets no gradient. Soft targets and label smoothing are expectations: a
    row's loss is then the sum over labels of their probability times the loss at that label, which for cross-entropy
    is torch's own. That evaluates the loss at all c labels of every row.

    Args:
        targets: class numbers of the shape of the logits without their classes, or probabilities of that of the logits.
        weight: of each class `[c]`; a label's loss is multiplied with it.
        sample_weight: of each example `[n]` or each target; a row's loss is multiplied with it. The mean divides by
            these weights too.
        memory: of each row `[n, c]`.

    Returns:
        A number, or one a target with `reduction="none"`, computed in single precision at least; of the dtype that
        torch's has.

    Raises:
        ValueError: if shapes or dtypes do not fit together, or a label is no class. Where finding that out would make a
            device wait, or stop a compiler, the row's loss is NaN instead.
    """
    is_soft = _check(logits, targets, weight)
    if is_soft and options.ignore_index >= 0:
        raise ValueError(
            f"ignore_index={options.ignore_index} is for class numbers, and the targets are probabilities."
        )
    place, classes = min(logits.ndim - 1, 1), logits.shape[min(logits.ndim - 1, 1)]
    shape = logits.shape[:place] + logits.shape[place + 1 :]
    result = torch.promote_types(logits.dtype, targets.dtype) if is_soft else logits.dtype
    dtype, kind = torch.promote_types(result, torch.float32), logits.device.type
    is_mixed = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if is_mixed else nullcontext():
        rows = logits.movedim(place, -1).reshape(-1, classes).to(dtype)
        weight = rows.new_ones(classes) if weight is None else weight.to(rows)
        own = None if sample_weight is None else _per_row(sample_weight, shape).to(rows)
        if is_soft:
            q = targets.movedim(place, -1).reshape(-1, classes).to(dtype)
            losses, counts = (
                _expected(row_losses, rows, _smoothed(q, options) * weight, memory),
                rows.new_ones(len(rows)),
            )
        else:
            losses, counts = _of_labels(row_losses, rows, targets.reshape(-1), weight, options, memory)
        if own is not None:
            losses, counts = losses * own, counts * own
        total = _reduced(losses, counts, shape, options.reduction)
    return total.to(dtype if is_mixed else result)


def _of_labels(
    row_losses: RowLosses, rows: Tensor, labels: Tensor, weight: Tensor, options: Options, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses and what each counts in a mean: the weight of its class."""
    labels = labels.long()
    ignored = labels == options.ignore_index
    labels = torch.where(ignored, 0, labels)
    wrong = (labels < 0) | (labels >= rows.shape[1])
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and wrong.any():
        label = labels[wrong][0].item()
        raise ValueError(
            f"targets must be from 0 to {rows.shape[1] - 1}, the {rows.shape[1]} classes of the logits, or "
            f"ignore_index={options.ignore_index}, got {label}."
        )
    labels = labels.clamp(0, rows.shape[1] - 1)
    rows = torch.where(ignored[:, None], 0, rows)  # neither NaN nor infinity of such a row reaches the gradient
    counts = weight[labels]
    losses = counts * row_losses(rows, labels, memory)
    if options.label_smoothing:
        even = weight.expand_as(rows) / rows.shape[1]
        spread = _expected(row_losses, rows, even, memory)
        losses = (1 - options.label_smoothing) * losses + options.label_smoothing * spread
    losses = torch.where(ignored, 0, torch.where(wrong, math.nan, losses))
    return losses, torch.where(ignored, 0, counts)


def _expected(row_losses: RowLosses, rows: Tensor, shares: Tensor, memory: Tensor | None) -> Tensor:
    """The sum over labels of shares `[n, c]` times the loss at that label."""
    num_rows, classes = rows.shape
    labels = torch.arange(classes, device=rows.device).repeat(num_rows)
    every = None if memory is None else memory.repeat_interleave(classes, dim=0)
    losses = row_losses(rows.repeat_interleave(classes, dim=0), labels, every)
    return (shares * losses.view(num_rows, classes)).sum(dim=1)


def _smoothed(q: Tensor, options: Options) -> Tensor:
    return (1 - options.label_smoothing) * q + options.label_smoothing / q.shape[1]


def _reduced(losses: Tensor, counts: Tensor, shape: torch.Size, reduction: str) -> Tensor:
    if reduction == "none":
        return losses.view(shape)
    return losses.sum() if reduction == "sum" else losses.sum() / counts.sum()


def _per_row(sample_weight: Tensor, shape: torch.Size) -> Tensor:
    given = sample_weight.shape
    if given != shape and given != shape[:1]:
        raise ValueError(
            f"sample_weight must have one number an example, {list(shape[:1])}, or one a target, {list(shape)}, "
            f"got the shape {list(given)}."
        )
    return sample_weight.reshape(given + (1,) * (len(shape) - len(given))).expand(shape).reshape(-1)


def _check(logits: Tensor, targets: Tensor, weight: Tensor | None) -> bool:
    """Whether targets are probabilities."""
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        raise ValueError(f"logits and targets must be tensors, got {type(logits).__name__}, {type(targets).__name__}.")
    if not logits.is_floating_point() or logits.ndim == 0:
        raise ValueError(f"logits must be of shape [n, c, ...] and floating, got {_said(logits)}.")
    classes = logits.shape[0] if logits.ndim == 1 else logits.shape[1]
    if weight is not None and len(weight) != classes:
        raise ValueError(f"weight has {len(weight)} classes, and the logits have {classes}.")
    is_soft = targets.is_floating_point()
    wanted = logits.shape if is_soft else logits.shape[: min(1, logits.ndim - 1)] + logits.shape[2:]
    if targets.shape != wanted or targets.is_complex() or targets.dtype == torch.bool:
        kind = "probabilities, of the shape of the logits" if is_soft else "class numbers, one for each row of logits"
        raise ValueError(f"targets must be {kind}, {list(wanted)}, got {_said(targets)}.")
    return is_soft


def _said(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
