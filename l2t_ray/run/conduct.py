"""One run from its newest checkpoint to its results, in a directory that this process holds."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l2t_ray.assembly.identity import shown_yaml
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.run import build_run, build_store
from l2t_ray.assembly.tasks import headline_for
from l2t_ray.bilevel.heap import keep_freed_memory
from l2t_ray.files import write_whole
from l2t_ray.interfaces import DivergenceError, StoppedError, Tracker, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.reports.suspects_list import worst, worst_table
from l2t_ray.run.deliver import deliver_data, deliver_models
from l2t_ray.run.results import ARTIFACTS, Result, final_row, noise_facts, write_results
from l2t_ray.run.suspects_file import file_name
from l2t_ray.run.written import CONFIG
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.stopping import StopRequest
from l2t_ray.tracking.mlflow import MlflowTracker, recorded_run_id
from l2t_ray.tracking.null import NullTracker
from l2t_ray.tracking.screen import Screen, summary_table
from l2t_ray.training.checkpoint import FINGERPRINT, Checkpoint, CheckpointStore
from l2t_ray.training.fingerprint import changed_modules
from l2t_ray.training.place import RunPlace

SHOWN_SUSPECTS = 10
"""Labels that are listed on the screen when the run is done."""


@dataclass(frozen=True)
class Conduct:
    """A run and all who hear of it."""

    config: ExperimentConfig
    place: RunPlace
    device: torch.device
    screen: Screen
    stop: StopRequest

    @property
    def directory(self) -> Path:
        return self.place.directory

    def run(self, tracker: Tracker | None, *, figures: bool) -> Result:
        """Trains what is left and writes the results.

        Raises:
            As `Experiment.run`.
        """
        store = build_store(self.config, self.directory)
        start = store.latest()
        self.place.has_begun = start is not None
        changed = [] if start is None else changed_modules(store.fingerprint_of(start), store.fingerprint or {})
        self._write_identity(store)
        if start is not None:
            store.share(start)
        tracker = tracker or self._tracker()
        self.screen.message(
            f"run {self.directory}" + ("" if start is None else f", from round {start.round} of {start.arm}")
        )
        if changed:
            self.screen.message(
                f"warning: {', '.join(changed)} changed since the checkpoint was written: from here on the run is "
                "trained by what is there now; start a new run (another name=) for numbers of one code."
            )
        for note in open_dataset(self.config.data).notes:
            self.screen.message(f"data: {note}")
        arms = [(name, self.config.training.num_rounds) for name in self.config.arms()]
        self.screen.start(arms, headline_for(self.config))
        status = "KILLED"
        try:
            tracker.log_params(self.config.flat() | noise_facts(self.config))
            if isinstance(tracker, MlflowTracker):
                deliver_data(tracker, self.config, self.directory)
            if start is not None:
                self._show(start.rows, tracker)
            with notes_on(self.screen):
                checkpoint = self._train(store, start, tracker)
            self.stop.rounds_ended()
            result = self._close(checkpoint, tracker, figures=figures)
            status = "FINISHED"
        except BaseException as error:
            self.stop.rounds_ended()
            if not isinstance(error, KeyboardInterrupt | StoppedError):
                status = "FAILED"
            raise
        finally:
            self.screen.stop()
            tracker.finish(status)
        return result

    def _write_identity(self, store: CheckpointStore) -> None:
        try:
            write_whole(self.directory / CONFIG, shown_yaml(self.config))
            write_whole(self.directory / FINGERPRINT, json.dumps(store.fingerprint, indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.directory}: {error.strerror}; set runs=DIR to another place."
            ) from None

    def _show(self, rows: Sequence[Mapping[str, Any]], tracker: Tracker) -> None:
        for row in rows:
            self.screen.update(row)
        tracker.log_rows(rows)

    def _train(self, store: CheckpointStore, start: Checkpoint | None, tracker: Tracker) -> Checkpoint:
        """The checkpoint at the end of the training: the one that was just made, whatever else the store may hold."""
        config = self.config

        def on_rows(rows: Sequence[Mapping[str, Any]]) -> None:
            if rows:
                self.place.has_begun = True
                self.stop.rounds_began()
            self._show(rows, tracker)

        if config.ray.enabled:
            from l2t_ray.distributed.launch import launch  # Ray takes seconds to import, and a plain run needs none

            return store.read(launch(config, self.directory, on_rows=on_rows, stop=self.stop))
        keep_freed_memory()
        run = build_run(config, group=SingleProcess(), device=self.device, run_dir=self.directory)
        return run.train(start=start, store=store, on_row=lambda row: on_rows([row]), should_stop=self.stop.is_asked)

    def _close(self, checkpoint: Checkpoint, tracker: Tracker, *, figures: bool) -> Result:
        result = write_results(self.config, self.directory, checkpoint, figures=figures)
        tracker.log_rows([final_row(summary, self.config.method.arm) for summary in result.summaries])
        tracker.log_artifacts(*(str(path) for name in sorted(ARTIFACTS) for path in sorted(self.directory.glob(name))))
        if isinstance(tracker, MlflowTracker):
            deliver_models(tracker, self.config, self.directory)
        self.screen.stop()
        self.screen.table(summary_table(result.summaries))
        for arm, suspected in result.suspects.items():
            is_method = arm == self.config.method.arm
            path = self.directory / file_name(arm, is_method=is_method)
            if is_method and (lines := worst(path, SHOWN_SUSPECTS).lines):
                self.screen.table(worst_table(lines))
            self.screen.message(f"{arm}: {suspected}; all are ranked in {path}")
        self.screen.message(f"results in {self.directory}")
        if isinstance(tracker, MlflowTracker):
            self.screen.message(f"view:  {tracker.ui_command()}")
        if checkpoint.diverged:
            raise DivergenceError(" ".join(checkpoint.diverged.values()))
        return result

    def _tracker(self) -> Tracker:
        tracking = self.config.tracking
        if not tracking.mlflow:
            return NullTracker()
        return MlflowTracker.start(
            uri=tracking.uri,
            directory=self.directory,
            experiment=tracking.experiment,
            run_name=self.directory.name,
            run_id=recorded_run_id(self.directory),
            method=self.config.method.arm,
            tags={"data": self.config.data.name, "method": self.config.method.name},
            warn=self.screen.message,
        )


@contextmanager
def notes_on(screen: Screen) -> Iterator[None]:
    """Shows what the package notes and warns of while it trains, such as the engine that `auto` chose."""
    logger, handler = logging.getLogger("l2t_ray"), logging.Handler(logging.INFO)
    handler.emit = lambda record: screen.message(record.getMessage())
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: screen.message(f"warning: {message}")
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.removeHandler(handler)
        logger.setLevel(level)
