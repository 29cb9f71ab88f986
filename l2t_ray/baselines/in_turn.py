"""One method after another, on the same student."""

from l2t_ray.interfaces import Method, MethodState, Metrics, RoundBatches


class MethodInTurn:
    """Gives the rounds below `switch` to one method and the others to another, which finds the student as it is.

    What the first one carries beyond the student is kept, and rests; the second must carry nothing of its own.
    """

    def __init__(self, first: Method, then: Method, *, switch: int):
        self._first, self._then, self._switch = first, then, switch

    @property
    def methods(self) -> tuple[Method, Method]:
        return self._first, self._then

    def init(self) -> MethodState:
        return self._first.init()

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        if index < self._switch:
            return self._first.round(state, batches, index)
        ended, metrics = self._then.round(MethodState(state.student, {}), batches, index)
        return state._replace(student=ended.student), metrics
