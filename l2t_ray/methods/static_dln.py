"""The learned loss as it starts, without a teacher: what L2T-DLN has beyond this is the teacher's doing."""

from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.unroll import plain_steps
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches


class StaticDLN:
    """K SGD steps a round under the objective's first loss, and what was added to it. A round costs what it costs under
    any fixed loss: there is no hypergradient."""

    def __init__(self, objective: LearnedObjective):
        self._objective, self._trainee = objective, objective.trainee

    def init(self) -> MethodState:
        return self._objective.init()

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        state = self._objective.constants_of_round(state, batches, index)
        rates = self._trainee.sgd.rates(index, len(batches.train))
        problem, phi = self._objective.problem(state), self.learned_loss(state)
        student, statistics = plain_steps(problem, state.student, phi, batches.train, rates)
        return state._replace(student=student), self._trainee.report(student, batches.val, statistics, rates[-1])

    def learned_loss(self, state: MethodState) -> Float[Tensor, " m"]:
        return self._objective.in_use(self._objective.initial_phi(), state)

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"] | None:
        """See `LearnedObjective.sample_weights`."""
        del index
        return self._objective.sample_weights(self._objective.initial_phi(), state, batch)
