"""A learned loss with its weights: what training leaves behind, whatever its family, and what a file gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.adjusted import AdjustedLoss
from l2t_ray.core.loss.family import KeptFamily, LossFamily, Picture
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Task

FAMILIES: dict[str, Any] = {
    PairLoss.family: PairLoss,
    TermLoss.family: TermLoss,
    AdjustedLoss.family: AdjustedLoss,
}
"""By the name that stands in files."""


class LearnedLoss(nn.Module):
    """A loss to train with: `loss(logits, labels)` if it reads class decisions, `loss(terms)` if it combines terms.

    >>> loss = LearnedLoss.load("loss.safetensors").to("cuda")
    >>> loss(student(images), labels).backward()

    Its weights are a buffer, `phi`: they move with the module and are not trained.

    Args:
        phi: None: those that the family begins with.
    """

    phi: Tensor

    def __init__(self, family: LossFamily, phi: Float[Tensor, " m"] | None = None):
        super().__init__()
        weights = (family.phi if phi is None else phi).detach().clone()
        if len(weights) != len(family.phi):
            raise ValueError(f"a loss of {len(family.phi)} weights was given {len(weights)}.")
        self.family = family
        self.register_buffer("phi", weights)

    def forward(self, *given: Any, **more: Any) -> Float[Tensor, ""]:
        """See the family's `loss`."""
        return self._kept.loss(self.phi, *given, **more)

    @property
    def is_kept(self) -> bool:
        """Whether its family has a file, a page and pictures; one's own may have none."""
        return isinstance(self.family, KeptFamily)

    @property
    def _kept(self) -> KeptFamily:
        if not isinstance(self.family, KeptFamily):
            raise TypeError(
                f"{type(self.family).__name__} lacks what a loss that is used outside its training has; give it the "
                "members of core/loss/family.KeptFamily."
            )
        return self.family

    def describe(self) -> str:
        return self._kept.describe(self.phi.cpu())

    def pictures(self) -> Sequence[Picture]:
        return self._kept.pictures(self.phi.cpu())

    def save(self, path: str | Path) -> None:
        """Writes family, architecture and weights to one `.safetensors` file; `load` needs nothing else.

        Raises:
            OSError: if the file cannot be written.
            TypeError: if its family has no file.
        """
        loss_file.write(path, self._kept.family, asdict(self._kept.spec), self.phi)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        task: Task | None = None,
        num_classes: int | None = None,
        families: Mapping[str, Any] = FAMILIES,
    ) -> "LearnedLoss":
        """The loss of a file, on the CPU.

        Args:
            task: what it is to be used for; None: nothing is checked before it is called.
            num_classes: of the task.
            families: by name, those that may be in the file.

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
        return cls(family, phi)
