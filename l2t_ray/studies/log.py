"""Tells screen and MLflow how a study goes: a parent run for the study, a child for each trial."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from l2t_ray.reports.comparison_table import CELL, FINAL, SEED
from l2t_ray.run import ARTIFACTS as OF_A_RUN
from l2t_ray.run.deliver import deliver_data, deliver_models
from l2t_ray.settings.experiment import TrackingConfig
from l2t_ray.studies.outcome import FILE, Outcome, read_outcome
from l2t_ray.studies.trials import Trial
from l2t_ray.tracking.metrics import read_rows
from l2t_ray.tracking.mlflow import MlflowTracker, recorded_run_id
from l2t_ray.tracking.screen import duration

ROLE = "l2t_ray.role"
"""Tag of MLflow runs: `study` or `trial`."""
COMPLETE = "mlflow_complete"
"""Marks the directory of a trial that MLflow has all of."""
ARTIFACTS = (*OF_A_RUN, FILE)
PATIENCE_S = 60.0
"""Longest wait, once, for the parent's id, without which no child can be opened."""
_LINE_EVERY_S = 30.0


class StudyLog:
    """The `Listener` of a study. Everything about MLflow happens in threads: training waits for none of it, but for
    the parent's id, once.

    Args:
        directory: of the study, and of its MLflow run's name.
        trials: gives the trials there are; a search has more of them from time to time.
        total: how many there will be.
        axes: what the labels of a cell belong to.
        metric: the final metric that is shown when a trial ends.
        tags: of parent and children.
        params: of the parent.
        after_each: called when a trial has ended.
    """

    def __init__(
        self,
        directory: Path,
        trials: Callable[[], Sequence[Trial]],
        *,
        total: int,
        tracking: TrackingConfig,
        axes: Sequence[str],
        metric: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        say: Callable[[str], None],
        after_each: Callable[[], object] = lambda: None,
    ):
        self._directory, self._trials, self._total, self._tracking = directory, trials, total, tracking
        self._axes, self._metric, self._tags = axes, metric, tags
        self._say, self._after_each = say, after_each
        self._parent: MlflowTracker | None = None
        if tracking.mlflow:
            self._parent = self._start(directory, directory.name, {ROLE: "study"}, method="")
        self._trackers: dict[str, MlflowTracker] = {}
        self._finished: set[str] = set()
        self._are_trials_closed = False
        self._closing = ThreadPoolExecutor(2, thread_name_prefix="mlflow-closing")
        self._began, self._last_line = time.monotonic(), time.monotonic()
        self._num_ended = self._num_before = sum(read_outcome(trial.directory) is not None for trial in trials())
        self._patience = PATIENCE_S
        self.failures: list[str] = []
        if self._parent is not None:
            self._parent.log_params(params)

    @property
    def place(self) -> tuple[str, str] | None:
        """MLflow's URI and the parent run's id; None without tracking, or where the store was never reached."""
        if self._parent is None or self._parent.run_id is None:
            return None
        return self._parent.uri, self._parent.run_id

    def on_rows(self, trial: Trial, rows: Sequence[Mapping[str, Any]]) -> None:
        if tracker := self._tracker(trial):
            tracker.log_rows(rows)
        now = time.monotonic()
        if rows and now - self._last_line >= _LINE_EVERY_S:
            total = trial.config.training.num_rounds  # final metrics come with the round after the last
            self._line(f"{_called(trial)}: round {min(rows[-1]['round'] + 1, total)}/{total}")

    def on_end(self, trial: Trial, outcome: Outcome) -> None:
        self._num_ended += 1
        value = outcome.numbers.get(self._metric)
        said = outcome.kind if value is None else f"{outcome.kind}, {self._metric.replace('_', ' ')} {value:.4f}"
        self._line(f"{_called(trial)}: {said}")
        self._finish(trial, outcome)
        self._after_each()

    def on_failure(self, trial: Trial, message: str) -> None:
        self.failures.append(f"{_called(trial)}: {message}")
        self._line(f"{_called(trial)}: failed: {message}")
        if tracker := self._trackers.pop(trial.name, None):
            self._closing.submit(tracker.finish, "FAILED")

    def catch_up(self) -> None:
        """Sends what MLflow does not have of trials that have ended."""
        for trial in self._trials():
            outcome = read_outcome(trial.directory)
            if outcome is None or trial.name in self._finished or (trial.directory / COMPLETE).exists():
                continue
            self._finish(trial, outcome)

    def close_trials(self) -> None:
        """Ends the children: MLflow has all of them then, if it ever answers. A second call does nothing."""
        if self._are_trials_closed:
            return
        self._are_trials_closed = True
        self.catch_up()  # of trials that ended before the store had answered
        for tracker in self._trackers.values():
            self._closing.submit(tracker.finish, "KILLED")
        self._closing.shutdown(wait=True)

    def close(self, status: str, artifacts: Sequence[Path], numbers: Mapping[str, float]) -> None:
        """Ends the parent run, with the study's tables and figures."""
        self.close_trials()
        if self._parent is None:
            return
        if numbers:
            self._parent.log_rows([{"arm": "", "round": self._num_ended, **numbers}])
        singles = [path for path in artifacts if path.parent == self._directory]
        folders = {path.parent for path in artifacts} - {self._directory}
        self._parent.log_artifacts(*map(str, [*singles, *sorted(folders)]))
        self._parent.finish(status)
        self._say(f"view:  {self._parent.ui_command()}")

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        tracker = self._tracker(trial)
        if tracker is None:
            return
        del self._trackers[trial.name]
        self._finished.add(trial.name)
        table = trial.directory / "metrics.parquet"
        # All rows: those it has are not sent again, and it may have been away when the first ones came.
        tracker.log_rows(read_rows(table) if table.exists() else [])
        tracker.log_rows([{**outcome.numbers, "arm": FINAL, "round": 0}])
        tracker.log_artifacts(*(str(path) for name in ARTIFACTS for path in sorted(trial.directory.glob(name))))
        deliver_data(tracker, trial.config, trial.directory)
        deliver_models(tracker, trial.config, trial.directory)

        def finish() -> None:
            tracker.finish("FINISHED" if outcome.kind == "finished" else "KILLED")
            if not (trial.directory / "mlflow_pending.jsonl").exists():
                (trial.directory / COMPLETE).touch()

        self._closing.submit(finish)

    def _tracker(self, trial: Trial) -> MlflowTracker | None:
        if self._parent is None:
            return None
        if trial.name not in self._trackers:
            if self._parent.wait_for_run_id(self._patience) is None:
                self._patience = 0.0
                return None  # the parent has warned; what MLflow lacks is sent when the study is resumed
            cell = dict(zip(self._axes, trial.cell, strict=True))
            tags = {ROLE: "trial", CELL: ", ".join(trial.cell), SEED: str(trial.seed)}
            tracker = self._start(trial.directory, trial.name, tags, method=trial.config.method.arm)
            tracker.log_params({**trial.config.flat(), **{f"cell.{axis}": label for axis, label in cell.items()}})
            self._trackers[trial.name] = tracker
        return self._trackers[trial.name]

    def _start(self, directory: Path, name: str, tags: Mapping[str, str], *, method: str) -> MlflowTracker:
        return MlflowTracker.start(
            uri=self._tracking.uri,
            directory=directory,
            experiment=self._tracking.experiment,
            run_name=name,
            run_id=recorded_run_id(directory),
            method=method,
            parent_run_id=None if self._parent is None else self._parent.run_id,
            tags={**self._tags, **tags},
            root=self._directory.parent,
            system_metrics=False,
            warn=self._say,
        )

    def _line(self, text: str) -> None:
        now = time.monotonic()
        self._last_line = now
        total, ended = self._total, self._num_ended - self._num_before
        left = total - self._num_ended
        eta = f"  ETA {duration((now - self._began) / ended * left)}" if ended and left else ""
        self._say(f"[{self._num_ended}/{total}] {text}{eta}")


def _called(trial: Trial) -> str:
    return f"{', '.join(trial.cell)}, seed {trial.seed}"
