"""Curves inside a soft metric: cross-entropy and a soft Jaccard index whose probabilities go through learned curves.

    sum_i w_i a_{y_i} CE_i + b (1 - mean_c  sum_{y=c} f(p_c) / (sum_{y=c} 1 + sum_{y!=c} g(p_c)))

This is Auto Seg-Loss's parametrisation (Li et al., ICLR 2021) of the mean intersection over union: the logical AND and
OR of answers and truth, which the metric is made of, become curves f and g of the probability. They rise from 0 to 1
over equal pieces, straight in each. So whatever is learned, hard answers have the metric itself for their loss; what
changes is what a half-sure pixel counts, in the intersection and in the union. Where phi is zero the curves are the
identity, and the loss is cross-entropy and soft Jaccard.

a and b are weights with a fixed mean push, as in `terms.TermLoss`, which combines the two. The mean is over the classes
that are there. The sums are over each image, whose loss counts by its rows, or over all rows of this worker's
minibatch, as the metric's are over all images; the latter depend on how a minibatch is divided among workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.family import Curve, LossPicture, RowLosses
from l2t_ray.core.loss.term_sample import shares_of_kinds
from l2t_ray.core.loss.terms import SCALE, TermLoss, slope_metrics
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.interfaces import Metrics, Rows, Task, Term, Terms

Sums = Literal["minibatch", "image"]
CURVES = ("and", "or")
"""f and g, in the order in which phi holds their pieces, behind the weights."""


@dataclass(frozen=True)
class SoftMetricSpec:
    """Everything about such a loss but its weights.

    Attributes:
        class_names: of the c classes.
        shares: how much of the rows each class has, in any unit.
        pieces: of each curve.
        sums: over what a soft Jaccard index is taken.
        balance: how far the weights of classes begin by how rare each is (`terms.TermLoss`).

    Raises:
        ValueError: if these are no names, no positive numbers, or of another number.
    """

    class_names: tuple[str, ...]
    shares: tuple[float, ...]
    pieces: int
    sums: Sums = "minibatch"
    balance: float = 0.0

    def __post_init__(self) -> None:
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names must be one name or more, each once, got {list(self.class_names)}.")
        if len(self.shares) != len(self.class_names) or not all(0 < share < math.inf for share in self.shares):
            raise ValueError(f"shares must be {len(self.class_names)} positive numbers, got {list(self.shares)}.")
        if self.pieces < 1:
            raise ValueError(f"pieces must be at least 1, got {self.pieces}.")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must be 0 to 1, got {self.balance}.")

    @property
    def num_weights(self) -> int:
        return len(self.class_names) + 1 + len(CURVES) * self.pieces


class SoftMetricLoss:
    """The family (`family.KeptFamily`). It reads class decisions; an image is all rows of one owner.

    >>> SoftMetricLoss(SoftMetricSpec(("sky", "road"), (0.7, 0.3), pieces=4))
    """

    family: ClassVar[str] = "soft_metric"
    spec_type: ClassVar[type] = SoftMetricSpec
    reads_memory = False

    def __init__(self, spec: SoftMetricSpec):
        self.spec = spec
        self._weighed = TermLoss(
            {"cross_entropy": spec.class_names, "jaccard": ("all",)},
            shares={"cross_entropy": spec.shares, "jaccard": (sum(spec.shares),)},
            balance=spec.balance,
        )

    @classmethod
    def of(cls, spec: SoftMetricSpec) -> "SoftMetricLoss":
        return cls(spec)

    @classmethod
    def for_classes(
        cls,
        class_names: Sequence[str],
        sample: Sequence[Terms] = (),
        *,
        num_pieces: int = 4,
        sums: Sums = "minibatch",
        balance: float = 0.0,
    ) -> "SoftMetricLoss":
        """
        Args:
            sample: what the task gives for some minibatches; shares of classes are read from them. None: even ones.
        """
        rows = [rows_of(terms, None) for terms in sample]
        shares = shares_of_kinds([_cross_entropy(own) for own in rows], len(class_names))
        return cls(SoftMetricSpec(tuple(class_names), tuple(shares), num_pieces, sums, balance))

    @property
    def phi(self) -> Float[Tensor, " m"]:
        """Cross-entropy and soft Jaccard, which is zeros, or what `balance` makes of it."""
        return torch.cat((self._weighed.phi, torch.zeros(len(CURVES) * self.spec.pieces)))

    @property
    def groups(self) -> dict[str, int]:
        return self._weighed.groups | {f"curve_{name}": self.spec.pieces for name in CURVES}

    def slopes(self, phi: Float[Tensor, " m"]) -> dict[str, Float[Tensor, " pieces"]]:
        """Of each curve on its pieces, in order; their mean is 1."""
        numbers = phi[self._weighed.num_weights :].split(self.spec.pieces)
        return {
            name: self.spec.pieces * (SCALE * own).softmax(dim=0) for name, own in zip(CURVES, numbers, strict=True)
        }

    def _of_weights(self, phi: Float[Tensor, " m"]) -> Float[Tensor, " w"]:
        """What of phi stands before the curves' pieces."""
        return phi[: self._weighed.num_weights]

    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        del memory
        rows = rows_of(terms, None)
        return self._weighed.losses(self._of_weights(phi), self._terms(phi, rows), None)._replace(rest=rows.rest)

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        rows = rows_of(terms, None)
        return self._weighed.fixed(self._terms(torch.zeros_like(self.phi), rows))

    def loss(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c *size"],
        labels: Int[Tensor, "n *size"],
        *,
        ignore_index: int = 255,
    ) -> Float[Tensor, ""]:
        """The loss of a minibatch, a mean over its pixels.

        Args:
            ignore_index: the label of pixels that do not count.

        Raises:
            ValueError: if shapes do not fit together, or a label is no class.
        """
        num_classes = len(self.spec.class_names)
        if logits.ndim < 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1] + logits.shape[2:]:
            raise ValueError(
                f"logits must be [n, {num_classes}, ...] and labels [n, ...], got {list(logits.shape)} and "
                f"{list(labels.shape)}."
            )
        labels = labels.long().flatten(1) if labels.ndim > 1 else labels.long()[:, None]
        counts = labels != ignore_index
        strange = counts & ((labels < 0) | (labels >= num_classes))
        if strange.any():
            raise ValueError(
                f"labels must be below {num_classes} or {ignore_index}, which does not count, got "
                f"{int(labels[strange][0])}."
            )
        owner = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[counts]
        flat = logits.flatten(2) if logits.ndim > 2 else logits[:, :, None]
        weights = logits.new_full(owner.shape, 1 / max(1, len(owner)))
        rows = Rows(flat.transpose(1, 2)[counts], labels[counts], weights, owner)
        return self._weighed.loss(self._of_weights(phi), self._terms(phi, rows))

    def _terms(self, phi: Float[Tensor, " m"], rows: Rows) -> Terms:
        values = {"cross_entropy": _cross_entropy(rows), "jaccard": self._jaccard(phi, rows)}
        return Terms(rows.logits, rows, values)

    def _jaccard(self, phi: Float[Tensor, " m"], rows: Rows) -> Term:
        dtype = torch.promote_types(phi.dtype, rows.logits.dtype)
        p = rows.logits.to(dtype).softmax(dim=1)
        slopes = self.slopes(phi.to(dtype))
        owners, image = rows.owner.unique(return_inverse=True)
        truth = F.one_hot(rows.labels, p.shape[1]).to(p)
        whole, num_wholes = (image, len(owners)) if self.spec.sums == "image" else (torch.zeros_like(image), 1)
        none = p.new_zeros(num_wholes, p.shape[1])
        intersection = none.index_add(0, whole, truth * _curve(slopes["and"], p))
        union = none.index_add(0, whole, truth + (1 - truth) * _curve(slopes["or"], p))
        present = none.index_add(0, whole, truth) > 0
        ratios = torch.where(present, intersection / union.clamp(min=torch.finfo(dtype).tiny), 0)
        values = 1 - ratios.sum(dim=1) / present.sum(dim=1).clamp(min=1)
        weights = rows.weights.new_zeros(len(owners)).index_add(0, image, rows.weights)
        return Term(values.expand(len(owners)), weights, torch.zeros_like(owners), owners)

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """`weight_<term>_<kind>`, and `slope_and_<piece>`, `slope_or_<piece>` of the curves."""
        return self._weighed.report(self._of_weights(phi)) | slope_metrics(self.slopes(phi))

    def check(self, task: Task, num_classes: int | None = None) -> None:
        del num_classes  # the names say it
        if not isinstance(task, _MaskTask):
            raise ValueError(f"is for images with masks, and the task here is {task.name}")
        own, theirs = self.spec.class_names, task.class_names
        if len(own) != len(theirs):
            raise ValueError(f"is for {len(own)} classes, and the {task.name} task has {len(theirs)}")
        for number, (name, other) in enumerate(zip(own, theirs, strict=True)):
            if name != other:
                raise ValueError(f"has {name!r} for class {number}, which is {other!r} in the {task.name} task")
        if task.auxiliary == "same":
            raise ValueError(
                "is of all rows together, and data.masks.auxiliary is 'same', which makes rows of both heads"
            )

    def describe(self, phi: Float[Tensor, " m"]) -> str:
        weights = self._weighed.weights(self._of_weights(phi))
        rows = zip(self.spec.class_names, weights["cross_entropy"].tolist(), strict=True)
        table = "\n".join(["| class | weight |", "|---|---|", *(f"| {name} | {weight:.3g} |" for name, weight in rows)])
        slopes = "\n".join(
            f"- `{name}`: {', '.join(f'{slope:.3g}' for slope in own.tolist())}"
            for name, own in self.slopes(phi).items()
        )
        return (
            f"It is cross-entropy by class and a soft Jaccard index with curves inside: {len(phi)} weights in all.\n\n"
            f"{table}\n\nThe soft Jaccard index counts {weights['jaccard'].item():.3g}. Its curves have these slopes "
            f"from probability 0 to 1, `and` in the intersection, `or` in the union:\n\n{slopes}\n\n{_USAGE}"
        )

    def pictures(self, phi: Float[Tensor, " m"]) -> list[LossPicture]:
        bars = self._weighed.pictures(self._of_weights(phi))
        x = [piece / self.spec.pieces for piece in range(self.spec.pieces + 1)]
        curves = [
            Curve(f"curve of {name}", x, _curve(slopes, phi.new_tensor(x)).tolist(), f"slope_{name}_")
            for name, slopes in self.slopes(phi).items()
        ]
        return [*bars, *curves]


_USAGE = """```python
import l2t_ray

loss = l2t_ray.LearnedLoss.load("loss.safetensors")
loss(student(images), masks).backward()  # logits [n, c, h, w], class numbers [n, h, w], 255 where none counts
```
"""


@runtime_checkable
class _MaskTask(Protocol):
    """A task of images with masks."""

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def auxiliary(self) -> str: ...


def _cross_entropy(rows: Rows) -> Term:
    return Term(cross_entropy(rows.logits, rows.labels), rows.weights, rows.labels, rows.owner)


def _curve(slopes: Float[Tensor, " pieces"], p: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The curve with these slopes on equal pieces of [0, 1], at p. Where two meet, its slope is the mean of theirs."""
    length = p.new_tensor(1 / len(slopes))
    starts = torch.arange(len(slopes), dtype=p.dtype, device=p.device) * length
    # No clamp, whose gradient at an end is all or nothing: a student that does not know yet has p = 1 / c there.
    return torch.maximum(torch.minimum(p[..., None] - starts, length), p.new_zeros(())) @ slopes
