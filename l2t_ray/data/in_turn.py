"""Training data that changes once in the course of a run."""

from collections.abc import Iterable

from l2t_ray.interfaces import Batch, Data, RoundBatches


class DataInTurn:
    """Serves the rounds below `switch` from one source and the others from another (the `Data` protocol).

    Both are asked by the round's own number, as if each had served all rounds. Epochs and the validation part as a
    whole are the first one's.
    """

    def __init__(self, first: Data, then: Data, *, switch: int):
        self._first, self._then, self._switch = first, then, switch

    @property
    def num_classes(self) -> int:
        return self._first.num_classes

    def round(self, index: int) -> RoundBatches:
        return (self._first if index < self._switch else self._then).round(index)

    def epoch(self, index: int) -> int:
        return self._first.epoch(index)

    def validation(self, epoch: int) -> Iterable[Batch]:
        return self._first.validation(epoch)

    def test(self) -> Iterable[Batch]:
        return self._first.test()
