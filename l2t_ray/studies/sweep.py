"""A study on its way: a directory with its declaration and the run directories of its trials.

runs/<study>-<size>/study.yaml      the study, resolved, with its experiment in base.yaml
                    samples.json    the samples chosen so far, where Optuna chooses them
                    trials/<name>/  a run directory for each trial, with `outcome.json` when it has ended
                    results.json    what the tables and figures are made of, with them beside it

The directory is all there is to know: a study that was killed goes on from it, trials from their own checkpoints.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from l2t_ray.assembly.tasks import build_task
from l2t_ray.files import write_whole
from l2t_ray.interfaces import Metric, UserError
from l2t_ray.masking import is_masked, masked_tree
from l2t_ray.run import working_directory
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings import yaml_file
from l2t_ray.studies.declaration import Study, load_study
from l2t_ray.studies.outcome import Outcome, read_outcome, run_trial
from l2t_ray.studies.trials import Trial, check_paper, check_trials, trial_of_sample, trials

DECLARATION = "study.yaml"
SAMPLES = "samples.json"
BASE = "base.yaml"
"""The experiment that trials start from: kept, so that a study goes on as it began whatever becomes of its files."""


@runtime_checkable
class Listener(Protocol):
    """Hears of the trials while they run, in the process of the study."""

    def on_rows(self, trial: Trial, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def on_end(self, trial: Trial, outcome: Outcome) -> None: ...
    def on_failure(self, trial: Trial, message: str) -> None:
        """The trial has no outcome: it is tried again when the study is resumed."""
        ...


@dataclass(frozen=True)
class Sweep:
    """A study and its place on disk."""

    study: Study
    directory: Path

    @classmethod
    def start(cls, study: Study, runs: Path) -> "Sweep":
        """A new study, in a directory named after it.

        Raises:
            UserError: if there is one already, a trial is not a possible experiment, its data is missing, its closing
                numbers lack the study's metric, or the paper's numbers are of something else; nothing is written then.
        """
        name = f"{study.name}-{study.size}" if study.size else str(study.name)
        sweep = cls(study, (working_directory() / runs.expanduser()).resolve() / name)
        declaration = sweep.directory / DECLARATION
        if declaration.exists():
            raise UserError(
                f"{sweep.directory} holds a study already; go on with --resume {sweep.directory}, or give another "
                "place with --runs."
            )
        check_paper(study, [trial.cell for trial in sweep.planned])
        sweep.study.final_metric(sweep.metrics)
        check_trials(sweep.planned)
        base = configuration.read_tree(study.base)
        try:
            declaration.parent.mkdir(parents=True, exist_ok=True)
            write_whole(sweep.directory / BASE, yaml_file.dump(masked_tree(base)))
            kept = study.model_copy(update={"base": Path(BASE)})
            write_whole(declaration, yaml_file.dump(masked_tree(kept.model_dump(mode="json"))))
        except OSError as error:
            raise UserError(f"cannot write to {sweep.directory}: {error.strerror}; give another --runs.") from None
        has_secrets = any(is_masked(str(masked_tree(tree))) for tree in (base, study.model_dump(mode="json")))
        return sweep if has_secrets else cls.resume(sweep.directory)

    @classmethod
    def resume(cls, directory: Path) -> "Sweep":
        """A study that was begun in a directory.

        Raises:
            UserError: if there is none.
        """
        directory = directory.resolve()
        if not (directory / DECLARATION).exists():
            raise UserError(
                f"{directory} holds no study (no {DECLARATION}); give the directory of a study to --resume."
            )
        return cls(load_study(directory / DECLARATION), directory)

    @cached_property
    def planned(self) -> list[Trial]:
        """All trials, as far as that can be said beforehand: what is searched for is drawn at random here."""
        return trials(self.study, self.directory / "trials", source=f"the study {self.study.name}")

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Of the trials' task; the first is the headline."""
        return build_task(self.planned[0].config).metrics

    @property
    def metric(self) -> str:
        """Name of the final metric that the study is about."""
        return self.study.final_metric(self.metrics)

    @property
    def trials(self) -> list[Trial]:
        """All trials; of a search those whose samples have been chosen."""
        if self.study.search == "random":
            return self.planned
        return [self._of_sample(i, sample) for i, sample in enumerate(self.samples)]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """What a search has chosen so far."""
        path = self.directory / SAMPLES
        return json.loads(path.read_text()) if path.exists() else []

    def add_sample(self, sample: Mapping[str, Any]) -> Trial:
        """Notes a sample for good, and gives its trial."""
        samples = [*self.samples, dict(sample)]
        temporary = self.directory / f".{SAMPLES}"
        temporary.write_text(json.dumps(samples))
        temporary.replace(self.directory / SAMPLES)
        return self._of_sample(len(samples) - 1, sample)

    def _of_sample(self, index: int, sample: Mapping[str, Any]) -> Trial:
        source = f"the study {self.study.name}"
        return trial_of_sample(self.study, self.directory / "trials", index, sample, source=source)

    def outcomes(self) -> dict[str, Outcome]:
        """How the trials ended that have ended, by name."""
        found = {trial.name: read_outcome(trial.directory) for trial in self.trials}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def pending(self) -> list[Trial]:
        done = self.outcomes()
        return [trial for trial in self.trials if trial.name not in done]


class Forwarder:
    """The `Tracker` of a trial: passes its rows on."""

    def __init__(self, hear: Callable[[Sequence[Mapping[str, Any]]], None]):
        self._hear = hear

    def log_params(self, params: Mapping[str, Any]) -> None:
        del params

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._hear(rows)

    def log_artifacts(self, *paths: str) -> None:
        del paths

    def finish(self, status: str) -> None:
        del status


def run_in_turn(pending: Iterable[Trial], listener: Listener) -> None:
    """All trials one after the other in this process: the reference for what Tune runs side by side."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for trial in pending:
        try:
            outcome = run_trial(trial, Forwarder(partial(listener.on_rows, trial)))
        except (UserError, RuntimeError, OSError) as error:
            listener.on_failure(trial, f"{type(error).__name__}: {error}")
        else:
            listener.on_end(trial, outcome)
