"""How a trial ended, on disk beside what it left behind: what a study knows when it is started again."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l2t_ray.interfaces import DivergenceError, Tracker
from l2t_ray.run import Experiment
from l2t_ray.studies.trials import Trial
from l2t_ray.tracking.peak_memory import PeakMemory

FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        kind: `finished`; `diverged`, which is a result too; or `stopped` early by a scheduler.
        numbers: final metrics of the run, as in its `summary.json`, as far as there are any, and the peak memory of
            its process [MB].
        message: why, unless finished.
    """

    kind: str
    numbers: Mapping[str, Any]
    message: str = ""


def read_outcome(directory: Path) -> Outcome | None:
    """None if the trial has not ended."""
    try:
        return Outcome(**json.loads((directory / FILE).read_text()))
    except FileNotFoundError:
        return None


def write_outcome(directory: Path, outcome: Outcome) -> Outcome:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{FILE}"
    temporary.write_text(json.dumps(asdict(outcome), indent=1))
    temporary.replace(directory / FILE)
    return outcome


def run_trial(trial: Trial, tracker: Tracker) -> Outcome:
    """Trains a trial, from its newest checkpoint if it has one, and notes how it ended.

    Raises:
        UserError, RuntimeError: where there is no outcome: something is wrong with the data, the disk or the machine.
    """
    known = read_outcome(trial.directory)
    if known is not None:  # its process died after the last round, before anybody had heard
        return known
    kind, message, memory = "finished", "", PeakMemory()
    try:
        Experiment(trial.config, trial.directory).run(quiet=True, tracker=tracker, figures=not trial.is_lean)
    except DivergenceError as error:
        kind, message = "diverged", str(error)
    numbers = json.loads((trial.directory / "summary.json").read_text())[-1]
    outcome = Outcome(kind, {**numbers, "peak_memory_mb": memory.megabytes()}, message)
    write_outcome(trial.directory, outcome)
    if trial.is_lean:
        shutil.rmtree(trial.directory / "checkpoints", ignore_errors=True)  # nothing goes on from here
    return outcome
