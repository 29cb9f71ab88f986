"""A learned loss with its weights: what training leaves behind, whatever its family, and what a file gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.adjusted import AdjustedLoss
from l2t_ray.core.loss.criterion import Options, class_weights, criterion
from l2t_ray.core.loss.family import CalledFamily, KeptFamily, LossFamily, LossPicture, RowFamily
from l2t_ray.core.loss.memory import nothing_remembered, remembered
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Task

FAMILIES: dict[str, Any] = {
    PairLoss.family: PairLoss,
    TermLoss.family: TermLoss,
    SoftMetricLoss.family: SoftMetricLoss,
    AdjustedLoss.family: AdjustedLoss,
}
"""By the name that stands in files."""


class LearnedLoss(nn.Module):
    """A loss to train with: `loss(logits, labels)` in the place of `torch.nn.CrossEntropyLoss`, `loss(terms)` for a
    combination of terms.

    >>> loss = LearnedLoss.load("loss.safetensors", ignore_index=255).to("cuda")
    >>> loss(student(images), labels).backward()

    Its weights are a buffer, `phi`: they move with the module and are not trained.

    Args:
        phi: None: those that the family begins with.
        weight: of each class; None: all count 1. With all options, it is as torch's (`criterion.criterion`). They are
            for losses of class decisions alone.
        num_examples: of the training set, for a loss with a memory: it then keeps what the student said of each, for
            calls with `index`.

    Raises:
        ValueError: if phi is of another length, or an option is none or not for this family.
    """

    phi: Tensor
    weight: Tensor | None
    memory: Tensor | None

    def __init__(
        self,
        family: LossFamily,
        phi: Float[Tensor, " m"] | None = None,
        *,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        num_examples: int | None = None,
    ):
        super().__init__()
        weights = (family.phi if phi is None else phi).detach().clone()
        if len(weights) != len(family.phi):
            raise ValueError(f"a loss of {len(family.phi)} weights was given {len(weights)}.")
        self.family = family
        # By torch's names: loops of other people read them, and set them.
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self._is_of_rows, self._is_kept = isinstance(family, RowFamily), isinstance(family, KeptFamily)
        if not self._is_of_rows and (weight is not None or self.options != Options()):
            raise ValueError(
                f"weight, ignore_index, reduction and label_smoothing are for losses of class decisions, and "
                f"{type(family).__name__} is none: it has no row_losses (core/loss/family.RowFamily)."
            )
        if num_examples is not None and (not family.reads_memory or num_examples < 1):
            raise ValueError(f"num_examples={num_examples!r} is for a loss with a memory, and above 0.")
        self.register_buffer("phi", weights)
        self.register_buffer("weight", class_weights(weight))
        # As wide as there are classes, which the first call tells.
        self.register_buffer("memory", None if num_examples is None else torch.zeros(num_examples, 0))

    @property
    def options(self) -> Options:
        """
        Raises:
            ValueError: if one of them is none.
        """
        return Options(self.ignore_index, self.reduction, self.label_smoothing)

    def with_options(self, **options: Any) -> "LearnedLoss":
        """The same loss with these options and otherwise those that it has; it remembers nothing yet.

        >>> per_pixel = fitted.loss.with_options(reduction="none", ignore_index=255)
        """
        own: dict[str, Any] = asdict(self.options) | {"weight": self.weight}
        if self.memory is not None:
            own["num_examples"] = len(self.memory)
        return LearnedLoss(self.family, self.phi, **own | options)

    def forward(self, *given: Any, **more: Any) -> Tensor:
        """Of class decisions: `(logits, targets)`, and by name

        - `sample_weight`: of each example `[n]` or each target;
        - `index`: the place `[n]` of each example in the training set, for a loss with a memory; it is without effect
          for others. In training mode the student's answers are remembered first.
        - `memory`: `[n, c]`, if it is kept elsewhere.

        Anything else is the family's affair. See `criterion.criterion` for shapes, dtypes and what is refused.
        """
        if self._is_of_rows:
            return self._of_rows(*given, **more)
        if not isinstance(self.family, CalledFamily):
            raise self._no_way("row_losses or loss (core/loss/family.RowFamily, CalledFamily)")
        return self.family.loss(self.phi, *given, **more)

    def _of_rows(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        sample_weight: Tensor | None = None,
        index: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        if memory is not None and (not self.family.reads_memory or logits.ndim != 2 or memory.shape != logits.shape):
            raise ValueError("memory is for a loss that has one, and of the shape [n, c] of the logits.")
        if index is not None and self.family.reads_memory:
            if memory is not None:
                raise ValueError("give index or memory, not both.")
            memory = self._recalled(logits, index)

        return criterion(
            self._row_losses,
            logits,
            targets,
            self.options,
            weight=self.weight,
            sample_weight=sample_weight,
            memory=memory,
        )

    def _row_losses(self, rows: Tensor, labels: Tensor, memory: Tensor | None) -> Tensor:
        phi = self.phi.to(torch.promote_types(self.phi.dtype, rows.dtype))
        return self.family.row_losses(phi, rows, labels, memory)  # type: ignore[attr-defined]  # a RowFamily

    @torch.no_grad()
    def _recalled(self, logits: Tensor, index: Tensor) -> Float[Tensor, "n c"]:
        """What is remembered of these examples, in training mode brought up to date before."""
        if self.memory is None:
            raise ValueError(
                "to be called with index, a loss needs num_examples=, the size of the training set: "
                "loss.with_options(num_examples=...)."
            )
        size = len(self.memory)
        fits = logits.ndim == 2 and index.shape == logits.shape[:1]
        if not fits or ((index < 0) | (index >= size)).any():
            raise ValueError(
                f"index must be the places, from 0 to {size - 1}, of the {len(logits)} examples that logits [n, c] are "
                f"of, got the shape {list(index.shape)} for logits of {list(logits.shape)}."
            )
        if self.memory.shape[1] == 0:
            self.memory = nothing_remembered(size, logits.shape[1], self.memory.device)
        if self.training:
            self.memory = remembered(self.memory, index.long(), logits.float().softmax(dim=1))
        return self.memory[index.long()]

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *more: Any) -> None:
        kept = state_dict.get(f"{prefix}memory")
        if kept is not None and self.memory is not None and len(kept) == len(self.memory):
            self.memory = self.memory.new_zeros(kept.shape)  # it may have had no call yet, and know no classes
        super()._load_from_state_dict(state_dict, prefix, *more)

    def extra_repr(self) -> str:
        return f"{type(self.family).__name__}, {len(self.phi)} weights, {self.options}"

    @property
    def is_kept(self) -> bool:
        """Whether its family has a file, a page and pictures; one's own may have none."""
        return self._is_kept

    @property
    def _kept(self) -> KeptFamily:
        if not isinstance(self.family, KeptFamily):
            raise self._no_way("the members of core/loss/family.KeptFamily")
        return self.family

    def _no_way(self, members: str) -> TypeError:
        return TypeError(
            f"{type(self.family).__name__} lacks what a loss that is used outside its training has; give it {members}."
        )

    @property
    def spec(self) -> Any:
        """Everything about the loss but its weights, a frozen dataclass.

        Raises:
            TypeError: if its family says none.
        """
        return self._kept.spec

    def describe(self) -> str:
        return self._kept.describe(self.phi.cpu())

    def pictures(self) -> Sequence[LossPicture]:
        return self._kept.pictures(self.phi.cpu())

    def save(self, path: str | Path) -> None:
        """Writes family, architecture and weights to one `.safetensors` file; `load` needs nothing else.

        Raises:
            OSError: if the file cannot be written.
            TypeError: if its family has no file.
        """
        loss_file.write(path, self._kept.family, asdict(self.spec), self.phi)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        task: Task | None = None,
        num_classes: int | None = None,
        families: Mapping[str, Any] = FAMILIES,
        **options: Any,
    ) -> "LearnedLoss":
        """The loss of a file, on the CPU.

        Args:
            task: what it is to be used for; None: nothing is checked before it is called.
            num_classes: of the task.
            families: by name, those that may be in the file.
            options: `weight`, `ignore_index` and whatever else a `LearnedLoss` may have.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, holds something else or a loss for another task or other classes, or is
                of a newer version.
        """
        name, spec, phi = loss_file.read(path, {name: family.spec_type for name, family in families.items()})
        family = families[name].of(spec)
        if task is not None:
            try:
                family.check(task, num_classes)
            except ValueError as error:
                raise ValueError(f"the loss of {path} {error}; take one that was learned for this task.") from None
        return cls(family, phi, **options)
