"""A loss that was learned before, in another run, and does not change: what it is worth without its teacher's cost.

Of several files the weights are averaged. One run's hypergradients are mostly noise, and so is much of where its loss
ends; the mean over seeds keeps what they agree on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.interfaces import MethodState, Metrics, RoundBatches, UserError
from l2t_ray.methods.parts import LossFacts, Parts, check_rows_are_examples
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.methods.static_dln import StaticDLN

_BEGUN = "frozen_loss"
"""Entry of a method's `extra`: the weights that its files held when the training began."""


class FrozenLossConfig(MethodSettings):
    """The loss of files that other runs left (`loss.safetensors`), unchanged from the first round to the last."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019

    name: Literal["frozen_loss"] = "frozen_loss"
    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Of losses of one kind, whose weights are averaged; the first one says the rest. On several machines each needs
    them under these paths."""

    def build(self, parts: Parts) -> "FrozenLoss":
        """
        Raises:
            UserError: if a file holds no loss for this task, or the losses differ in more than their weights.
        """
        loss, phi = read_mean(self.files, parts.loss_facts)
        if loss.reads_memory:
            check_rows_are_examples(parts, "a loss with a memory", "method.files to a loss without one")
        memory = Memory(parts.trainee, parts.num_images, parts.num_classes) if loss.reads_memory else None
        return FrozenLoss(LearnedObjective(parts.trainee, loss, phi=phi, memory=memory))

    def learned_loss(self, phi: Float[Tensor, " m"], facts: LossFacts) -> LearnedLoss:
        return LearnedLoss(read_mean(self.files, facts)[0], phi)


class FrozenLoss(StaticDLN):
    """K SGD steps a round under the loss of the files. A run that is resumed goes on under the one that it began with,
    or not at all."""

    def init(self) -> MethodState:
        state = super().init()
        return state._replace(extra={**state.extra, _BEGUN: self._objective.initial_phi()})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        """
        Raises:
            UserError: if the files held other weights when the training began.
        """
        if not torch.equal(state.extra[_BEGUN], self._objective.initial_phi()):
            raise UserError(
                "method.files: the loss is another one than that under which this run began; put the files back as "
                "they were, or start a new run."
            )
        return super().round(state, batches, index)


def read_mean(files: Sequence[Path], facts: LossFacts) -> tuple[LossFamily, Float[Tensor, " m"]]:
    """The loss of the first file, and the mean of the weights of all.

    Raises:
        UserError: if a file holds no loss for this task, or the losses differ in more than their weights.
    """
    losses = [_read(path, facts) for path in files]
    kinds = [(type(loss.family), len(loss.phi), _settings(asdict(loss.spec))) for loss in losses]
    for path, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"method.files: the loss of {path} is of another kind than that of {files[0]}, and their weights have "
                "no mean; name files of one setting."
            )
    return losses[0].family, torch.stack([loss.phi for loss in losses]).mean(dim=0)


def _settings(spec: Any) -> Any:
    """What was set of a loss, and not measured in a run's own data: rows of numbers (shares, knots, shifts) are left
    out."""
    if isinstance(spec, Mapping):
        return {name: _settings(value) for name, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [_settings(value) for value in spec if not isinstance(value, int | float)]
    return spec


def _read(path: Path, facts: LossFacts) -> LearnedLoss:
    try:
        return LearnedLoss.load(path, task=facts.task, num_classes=facts.num_classes)
    except FileNotFoundError:
        raise UserError(f"method.files: there is no file {path}; a run leaves its loss as loss.safetensors.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"method.files: {error}") from None
