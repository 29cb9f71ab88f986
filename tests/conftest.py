"""What tests of several parts use."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest


class TwoThreads:
    """One of two workers, each a thread of this process; a barrier makes their sums collective."""

    size = 2

    def __init__(self, rank, slots, barrier):
        self.rank, self._slots, self._barrier = rank, slots, barrier

    def sum(self, tensor):
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait(timeout=30)
        total = self._slots[0] + self._slots[1]
        self._barrier.wait(timeout=30)
        return total


@pytest.fixture
def run_on_two_workers():
    """`run(work)` gives `[work(group of rank 0), work(group of rank 1)]`. Workers may not share a module."""

    def run(work):
        slots, barrier = [None, None], threading.Barrier(2)

        def guarded(rank):
            try:
                return work(TwoThreads(rank, slots, barrier))
            except BaseException:
                barrier.abort()  # the other one must not wait for a sum that never comes
                raise

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(guarded, range(2)))

    return run
