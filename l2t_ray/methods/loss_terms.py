"""The settings of a learned combination of a task's own loss terms (`core/loss/terms.py`)."""

from typing import Annotated, Literal

from pydantic import Field

from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.core.student import Trainee
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.parts import LossFacts
from l2t_ray.methods.task_loss import TaskLoss
from l2t_ray.settings.record import Real, Whole


class TermLossConfig(LossSettings):
    """A weight for each kind of each term, and on request a curve for each term; the mean push stays fixed."""

    name: Literal["terms"] = "terms"  # pyright: ignore[reportIncompatibleVariableOverride]
    pieces: Annotated[Whole, Field(ge=1, le=100)] = 1
    """Straight pieces of each term's curve; 1: none, the weights are all that is learned."""
    balance: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """How far the weights begin by how rare each kind is: shares of the task's own loss to the power of minus this. 0.5
    is the root of a class's frequency."""

    def warm_up(self, trainee: Trainee, memory: Memory | None = None) -> TaskLoss:
        """The task's own loss."""
        del memory  # it reads none
        return TaskLoss(trainee)

    def family(self, facts: LossFacts, *, begun: bool = True) -> TermLoss:
        del begun  # it always begins with the task's own loss, or that balanced
        sample = facts.sample() if facts.task.kinds else ()
        return TermLoss.for_task(facts.task, sample, num_pieces=self.pieces, balance=self.balance)
