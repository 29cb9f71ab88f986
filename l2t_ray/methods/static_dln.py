"""The learned loss as it starts, without a teacher: what L2T-DLN has beyond this is the teacher's doing."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.unroll import plain_steps
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.interfaces import Batch, Method, MethodState, Metrics, RoundBatches
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule


class StaticDLNConfig(LearnedLossSettings):
    """The loss network as it starts and as the noise is estimated, without a teacher: what L2T-DLN has beyond this, if
    its other settings are the same, is the teacher's doing. (Nothing is validated on here: clean images that are
    `trusted` are all trained on at any time.)"""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019

    name: Literal["static_dln"] = "static_dln"

    def learner(self, objective: LearnedObjective, parts: Parts) -> "StaticDLN":
        del parts
        return StaticDLN(objective)

    def _rounds(self, learner: Method, objective: LearnedObjective, parts: Parts) -> list[Phase]:
        if self.clean_images != "trusted" or self.warm_share:
            return super()._rounds(learner, objective, parts)
        # As under any other fixed loss, the last rounds train on the validation images as well.
        return [
            Phase(0, learner, parts.source.plain()),
            Phase(self.ending_start(parts.num_rounds), learner, parts.source.mixed()),
        ]


class StaticDLN:
    """K SGD steps a round under the objective's first loss, and what was added to it. A round costs what it costs under
    any fixed loss: there is no hypergradient."""

    def __init__(self, objective: LearnedObjective):
        self._objective, self._trainee = objective, objective.trainee

    def init(self) -> MethodState:
        return self._objective.init()

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        state = self._objective.constants_of_round(state, batches, index)
        rates = self._trainee.schedule.rates(index, len(batches.train))
        problem, phi = self._objective.problem(state), self.learned_loss(state)
        student, statistics = plain_steps(problem, state.student, phi, batches.train, rates)
        return state._replace(student=student), self._trainee.report(student, batches.val, statistics, rates[-1])

    def learned_loss(self, state: MethodState) -> Float[Tensor, " m"]:
        return self._objective.in_use(self._objective.initial_phi(), state)

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"] | None:
        """See `LearnedObjective.sample_weights`."""
        del index
        return self._objective.sample_weights(self._objective.initial_phi(), state, batch)
