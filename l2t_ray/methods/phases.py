"""A training in phases: from a round on, another method on the same student, other data, or a fresh start of either.

Warm-up, estimates of the label noise, fine-tuning and clean images that are trained on as well are all phases.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import Batch, Data, LearnsLoss, Method, MethodState, Metrics, RoundBatches, Weighing

OnEnter = Callable[[MethodState, int], MethodState]
"""`(state, round) -> the state that the phase begins with`, the same on every worker."""


@dataclass(frozen=True)
class Phase:
    """What is done from `first_round` until the next phase.

    Attributes:
        on_enter: changes the state before the first round: it estimates something, or begins with a new student.
    """

    first_round: int
    method: Method
    data: Data
    on_enter: OnEnter | None = None


def rounds_of(share: float, num_rounds: int) -> int:
    """That share of the rounds, but neither none nor all of them where there are two or more."""
    return max(1, min(num_rounds - 1, round(share * num_rounds)))


class Phases:
    """A method that is another one in each phase. They share the student, and each keeps what the others carry.

    Args:
        phases: in order; the first one begins with round 0.
    """

    def __init__(self, phases: Sequence[Phase]):
        assert phases[0].first_round == 0
        self.phases = phases

    def init(self) -> MethodState:
        states = [phase.method.init() for phase in reversed(self.phases)]
        return MethodState(states[0].student, {name: x for state in states for name, x in state.extra.items()})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        phase = self.at(index)
        if index == phase.first_round and phase.on_enter is not None:
            state = phase.on_enter(state, index)
        return phase.method.round(state, batches, index)

    def at(self, index: int) -> Phase:
        """The phase that a round belongs to."""
        return [phase for phase in self.phases if phase.first_round <= index][-1]

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"] | None:
        method = self.at(index).method
        return method.sample_weights(state, batch, index) if isinstance(method, Weighing) else None

    def learned_loss(self, state: MethodState) -> Float[Tensor, " m"] | None:
        learners = [phase.method for phase in self.phases if isinstance(phase.method, LearnsLoss)]
        return learners[-1].learned_loss(state) if learners else None


def methods_of(method: Method) -> list[Method]:
    """The different methods of all phases, in order; the method alone, where it has none."""
    if not isinstance(method, Phases):
        return [method]
    return list({id(phase.method): phase.method for phase in method.phases}.values())


class PhasedData:
    """Serves each phase's rounds from its own data (the `Data` protocol).

    All are asked by the round's own number, as if each had served all rounds. Epochs, and the validation part as a
    whole, are the first one's.
    """

    def __init__(self, phases: Sequence[Phase]):
        self._phases, self._first = phases, phases[0].data

    @property
    def num_classes(self) -> int:
        return self._first.num_classes

    def round(self, index: int) -> RoundBatches:
        return [phase.data for phase in self._phases if phase.first_round <= index][-1].round(index)

    def epoch(self, index: int) -> int:
        return self._first.epoch(index)

    def validation(self, epoch: int) -> Iterable[Batch]:
        return self._first.validation(epoch)

    def test(self) -> Iterable[Batch]:
        return self._first.test()
