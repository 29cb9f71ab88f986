"""What a person sees while a run goes on: a bar for each arm, or plain lines where there is no terminal."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from l2t_ray.headline import ACCURACY, formatted, headline_of
from l2t_ray.interfaces import Metric
from l2t_ray.masking import masked

_ETA_ROUNDS = 50  # rounds that the remaining time is estimated from


@dataclass
class _Arm:
    num_rounds: int
    task: TaskID | None = None
    latest: dict[str, Any] = field(default_factory=dict)
    arrivals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_ETA_ROUNDS + 1))

    @property
    def num_done(self) -> int:
        return min(self.latest["round"] + 1, self.num_rounds) if self.latest else 0

    def seconds_left(self) -> float | None:
        if len(self.arrivals) < 2:
            return None
        (began, first), (now, last) = self.arrivals[0], self.arrivals[-1]
        return (self.num_rounds - self.num_done) * (now - began) / (last - first) if last > first else None


class Screen:
    """Shows rows of the metrics table as they come. Every call is safe before `start` and after `stop`.

    Args:
        quiet: show nothing at all.
        console: where to write; None: standard output.
        interval: seconds between the lines of an arm where there is no terminal. First and last round always show.
        clock: the time in seconds, for the remaining time and the interval.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        interval: float | int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._console = console or Console(highlight=False)
        self._interval = interval
        self._clock = clock
        self._arms: dict[str, _Arm] = {}
        self._headline = ACCURACY
        self._last_line: dict[str, float] = {}
        self._progress: Progress | None = None

    def start(self, arms: Sequence[tuple[str, int]], headline: Metric = ACCURACY) -> None:
        """Prepares a bar for each (name, number of rounds); `headline` is shown whenever it is measured."""
        self.stop()
        self._headline = headline
        self._arms = {name: _Arm(num_rounds) for name, num_rounds in arms}
        self._last_line = {}
        if self._quiet or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", justify="right"),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            refresh_per_second=4,
        )
        for name, arm in self._arms.items():
            arm.task = self._progress.add_task(name, total=arm.num_rounds, numbers="")
        self._progress.start()

    def update(self, row: Mapping[str, Any]) -> None:
        """Shows a row; columns it lacks keep their last value on screen (not every round is evaluated)."""
        arm = self._arms.get(row["arm"])
        if self._quiet or arm is None:
            return
        now = self._clock()
        arm.latest.update({name: value for name, value in row.items() if value is not None})
        if arm.arrivals and row["round"] <= arm.arrivals[-1][1]:  # went back to a checkpoint
            arm.arrivals.clear()
        arm.arrivals.append((now, row["round"]))
        numbers = _numbers(arm, self._headline)
        if self._progress is not None and arm.task is not None:
            self._progress.update(arm.task, completed=arm.num_done, numbers=numbers)
            return
        last = self._last_line.get(row["arm"])
        if last is None or now - last >= self._interval or arm.num_done == arm.num_rounds:
            self._last_line[row["arm"]] = now
            self._line(f"{row['arm']}  round {arm.num_done}/{arm.num_rounds}  {numbers}")

    def message(self, text: str) -> None:
        """Shows a line of text, above the bars, without credentials."""
        if not self._quiet:
            self._line(masked(text))

    def table(self, table: Table) -> None:
        """Shows a table."""
        if not self._quiet:
            self._console.print(table)

    def stop(self) -> None:
        """Leaves the bars as they stand and gives the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, text: str) -> None:
        # Plain text, unwrapped: a path must stay copyable, and [brackets] are not markup.
        self._console.print(Text(text), soft_wrap=True)


def summary_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """A table with one line for each arm, from the mappings of `summary.json`.

    Args:
        summaries: mappings with `arm` and any of `test_accuracy`, `best_test_accuracy`, `val_error`, `seconds`; of
            another headline than accuracy, as `headline` says.
    """
    columns = _summary_columns(headline_of(summaries[0] if summaries else {}))
    table = Table("arm", title=None, header_style="bold")
    for heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for summary in summaries:
        missing = "diverged" if summary.get("diverged") else "–"
        table.add_row(
            str(summary["arm"]),
            *(missing if (v := summary.get(key)) is None else show(v) for _, key, show in columns),
        )
    return table


def duration(seconds: float | int) -> str:
    """A time span to read: `0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _summary_columns(headline: Metric) -> tuple[tuple[str, str, Callable[[float], str]], ...]:
    """Heading, name among the final metrics, and how a value is shown."""
    return (
        (f"test {headline.title}", headline.on_test, lambda value: formatted(value, headline)),
        ("best", headline.best, lambda value: formatted(value, headline)),
        ("validation error", "val_error", "{:.4f}".format),
        ("time", "seconds", duration),
    )


def _numbers(arm: _Arm, headline: Metric) -> str:
    latest, left = arm.latest, arm.seconds_left()
    parts = []
    if "val_error" in latest:
        parts.append(f"val error {latest['val_error']:.4f}")
    if headline.on_test in latest:
        parts.append(f"test {headline.short or headline.title} {formatted(latest[headline.on_test], headline)}")
    if "images_per_second" in latest:
        parts.append(f"{latest['images_per_second']:,.0f} img/s")
    if left is not None:
        parts.append(f"ETA {duration(left)}")
    return "  ".join(parts)
