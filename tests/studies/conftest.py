"""A study small enough for tests: LeNet on digits for a few rounds."""

import pytest
import yaml

from l2t_ray.studies.declaration import load_study
from l2t_ray.studies.sweep import Sweep

EXPERIMENT = {
    "data": {"name": "digits", "num_validation": 200, "augment": "none"},
    "student": {"name": "lenet"},
    "training": {
        "num_rounds": 4,
        "num_steps": 2,
        "batch_size": 8,
        "val_batch_size": 8,
        "eval_every": 2,
        "checkpoint_every": 1,
    },
    "ray": {"enabled": False},
    "tracking": {"mlflow": False},
}
STUDY = {
    "title": "Small",
    "base": "experiment.yaml",
    "seeds": 1,
    "cases": {
        "cross-entropy": {"method": "cross_entropy"},
        "learned": {"method": {"name": "l2t_dln", "teacher": "adam"}},
    },
    "grid": {"training.learning_rate": [0.05, 0.1]},
}


@pytest.fixture
def write(tmp_path):
    """`write(**changes)`: the file of the small study, changed."""

    def write(**changes):
        (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return path

    return write


@pytest.fixture
def start(write, tmp_path):
    """`start(**changes)`: the small study, begun."""
    return lambda runs="runs", **changes: Sweep.start(load_study(write(**changes)), tmp_path / runs)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.rows, self.ended, self.failed = [], {}, {}

    def on_rows(self, trial, rows):
        self.rows += [(trial.name, row["round"]) for row in rows]

    def on_end(self, trial, outcome):
        self.ended[trial.name] = outcome

    def on_failure(self, trial, message):
        self.failed[trial.name] = message


@pytest.fixture
def heard():
    return Heard()
