"""Where a round's time goes: parts of the code, by name, timed on the host and labelled in profiler traces.

No device is waited for. On a GPU, work is queued, and its time shows up in the part that first needs a result of it:
for L2T-DLN that is `hypergradient`, which ends by reading the validation error.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

PARTS = ("data", "unroll", "hypergradient", "collectives", "teacher")
"""Batches of the round; student steps; the way back through them; sums over workers, which includes waiting for the
slowest one; asking the teacher, which includes waiting for it and for the other workers' shares."""


class Stopwatch:
    """Seconds by part. Time within an inner part counts for that one alone, so the parts add up."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._within = 0.0  # time of the inner parts of the one that is running
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began, within, self._within = self._clock(), self._within, 0.0
        try:
            yield
        finally:
            whole = self._clock() - began
            self.seconds[name] += whole - self._within
            self._within = within + whole


_WATCH: ContextVar[Stopwatch | None] = ContextVar("watch", default=None)


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """A stopwatch for the parts that run within the block, in this thread."""
    watch = Stopwatch()
    token = _WATCH.set(watch)
    try:
        yield watch
    finally:
        _WATCH.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Marks a block, or as a decorator a function, as a part. Costs microseconds where nobody times or profiles."""
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        with torch.profiler.record_function(name), _on_watch(name):
            yield
    else:
        with _on_watch(name):
            yield


@contextmanager
def _on_watch(name: str) -> Iterator[None]:
    watch = _WATCH.get()
    if watch is None:
        yield
    else:
        with watch.part(name):
            yield
