"""A trace of a few rounds by torch.profiler, as a file that opens in Perfetto (ui.perfetto.dev) and chrome://tracing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

OnRound = Callable[[], None]
"""To be called after every round."""

SKIPPED, WARM_UP, TRACED = 1, 1, 2
"""Rounds: the first one is not like the others, and the profiler's own start is not to be seen."""


@contextmanager
def profiled(directory: Path | None, arm: str) -> Iterator[OnRound]:
    """Traces the third and the fourth round of an arm into `directory/<arm>.json.gz`; None: traces nothing."""
    if directory is None:
        yield lambda: None
        return
    directory.mkdir(parents=True, exist_ok=True)

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(directory / f"{arm}.json.gz"))

    activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    rounds = schedule(skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=rounds, on_trace_ready=write) as profiler:
        yield profiler.step
