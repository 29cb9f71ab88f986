"""Tells screen and MLflow how a study goes: a parent run for the study, a child for each trial."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from l2t_ray.studies.outcome import Outcome
from l2t_ray.studies.sweep import Sweep
from l2t_ray.studies.trials import Trial, axes
from l2t_ray.tracking.metrics import read_rows
from l2t_ray.tracking.mlflow import MlflowTracker, recorded_run_id
from l2t_ray.tracking.screen import duration

ROLE = "l2t_ray.role"
"""Tag of MLflow runs: `study` or `trial`."""
COMPLETE = "mlflow_complete"
"""Marks the directory of a trial that MLflow has all of."""
ARTIFACTS = ("config.yaml", "loss.md", "loss.safetensors", "metrics.parquet", "outcome.json", "summary.json")
PATIENCE_S = 60.0
"""Longest wait, once, for the parent's id, without which no child can be opened."""
_LINE_EVERY_S = 30.0


class StudyLog:
    """The `Listener` of a study. Everything about MLflow happens in threads: training waits for none of it, but for
    the parent's id, once."""

    def __init__(self, sweep: Sweep, *, say: Callable[[str], None]):
        self._sweep, self._say = sweep, say
        tracking = sweep.trials[0].config.tracking
        self._parent = self._start(sweep.directory, sweep.directory.name, "study", {}) if tracking.mlflow else None
        self._trackers: dict[str, MlflowTracker] = {}
        self._finished: set[str] = set()
        self._closing = ThreadPoolExecutor(2, thread_name_prefix="mlflow-closing")
        self._began, self._last_line = time.monotonic(), time.monotonic()
        self._num_ended = self._num_before = len(sweep.outcomes())
        self._patience = PATIENCE_S
        self.failures: list[str] = []
        if self._parent is not None:
            self._parent.log_params({"study": sweep.study.model_dump(mode="json", exclude={"sizes"})})

    def on_rows(self, trial: Trial, rows: Sequence[Mapping[str, Any]]) -> None:
        if tracker := self._tracker(trial):
            tracker.log_rows(rows)
        now = time.monotonic()
        if rows and now - self._last_line >= _LINE_EVERY_S:
            total = trial.config.training.num_rounds  # closing numbers come with the round after the last
            self._line(f"{_called(trial)}: round {min(rows[-1]['round'] + 1, total)}/{total}")

    def on_end(self, trial: Trial, outcome: Outcome) -> None:
        self._num_ended += 1
        metric = self._sweep.study.metric
        value = outcome.numbers.get(metric)
        said = outcome.kind if value is None else f"{outcome.kind}, {metric.replace('_', ' ')} {value:.4f}"
        self._line(f"{_called(trial)}: {said}")
        self._finish(trial, outcome)

    def on_failure(self, trial: Trial, message: str) -> None:
        self.failures.append(f"{_called(trial)}: {message}")
        self._line(f"{_called(trial)}: failed: {message}")
        if tracker := self._trackers.pop(trial.name, None):
            self._closing.submit(tracker.finish, "FAILED")

    def catch_up(self) -> None:
        """Sends what MLflow does not have of trials that have ended."""
        outcomes = self._sweep.outcomes()
        for trial in self._sweep.trials:
            outcome = outcomes.get(trial.name)
            if outcome is None or trial.name in self._finished or (trial.directory / COMPLETE).exists():
                continue
            self._finish(trial, outcome)

    def close(self, status: str, artifacts: Sequence[Path], numbers: Mapping[str, float]) -> None:
        """Ends the parent run, with the study's tables and figures."""
        self.catch_up()  # of trials that ended before the store had answered
        for tracker in self._trackers.values():
            self._closing.submit(tracker.finish, "KILLED")
        self._closing.shutdown(wait=True)
        if self._parent is None:
            return
        if numbers:
            self._parent.log_rows([{"arm": "", "round": self._num_ended, **numbers}])
        singles = [path for path in artifacts if path.parent == self._sweep.directory]
        folders = {path.parent for path in artifacts} - {self._sweep.directory}
        self._parent.log_artifacts(*map(str, [*singles, *sorted(folders)]))
        self._parent.finish(status)
        self._say(f"look:  {self._parent.ui_command()}")

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        tracker = self._tracker(trial)
        if tracker is None:
            return
        del self._trackers[trial.name]
        self._finished.add(trial.name)
        value = outcome.numbers.get(self._sweep.study.metric)
        table = trial.directory / "metrics.parquet"
        # All rows: those it has are not sent again, and it may have been away when the first ones came.
        tracker.log_rows(read_rows(table) if table.exists() else [])
        tracker.log_rows([{"arm": "final", "round": 0, self._sweep.study.metric: value}])
        tracker.log_artifacts(*(str(path) for name in ARTIFACTS if (path := trial.directory / name).exists()))

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
            cell = dict(zip(axes(self._sweep.study), trial.cell, strict=True))
            tracker = self._start(trial.directory, trial.name, "trial", {"cell": ", ".join(trial.cell)})
            tracker.log_params({**trial.config.flat(), **{f"cell.{axis}": label for axis, label in cell.items()}})
            self._trackers[trial.name] = tracker
        return self._trackers[trial.name]

    def _start(self, directory: Path, name: str, role: str, tags: Mapping[str, str]) -> MlflowTracker:
        study, tracking = self._sweep.study, self._sweep.trials[0].config.tracking
        return MlflowTracker.start(
            uri=tracking.uri,
            directory=directory,
            experiment=tracking.experiment,
            run_name=name,
            run_id=recorded_run_id(directory),
            parent_run_id=self._parent.run_id if role == "trial" and self._parent else None,
            tags={ROLE: role, "study": str(study.name), "size": study.size or "", "table": study.table, **tags},
            root=self._sweep.directory.parent,
            system_metrics=False,
            warn=self._say,
        )

    def _line(self, text: str) -> None:
        now = time.monotonic()
        self._last_line = now
        total, ended = len(self._sweep.trials), self._num_ended - self._num_before
        left = total - self._num_ended
        eta = f"  ETA {duration((now - self._began) / ended * left)}" if ended and left else ""
        self._say(f"[{self._num_ended}/{total}] {text}{eta}")


def _called(trial: Trial) -> str:
    return f"{', '.join(trial.cell)}, seed {trial.seed}"
