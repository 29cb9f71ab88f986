"""One Ray for the whole session, and small runs on it."""

import os
import sys
from pathlib import Path

import pytest
from same_end import LONGER

from l2t_ray.distributed.launch import ENVIRONMENT
from l2t_ray.run import Experiment

REPOSITORY = Path(__file__).parents[2]
CONFIG, JOB = REPOSITORY / "configs/digits.yaml", REPOSITORY / "jobs/cifar.py"

SMALL = [
    "student.name=lenet",
    "training.num_steps=3",
    "training.batch_size=12",
    "training.val_batch_size=24",
    "training.learning_rate=0.05",
    "training.decay=constant",
    "training.num_rounds=10",
    "training.checkpoint_every=3",
    "training.eval_every=5",
    "method.loss.hidden=8",
    "method.loss.init=cross_entropy",
    "method.teacher.cells=[4]",
    "method.teacher.horizon=4",
    "tracking.mlflow=false",
]
"""Digits in milliseconds a round. Checkpoints fall between and within the LSTM's windows of four rounds."""


@pytest.fixture(scope="session")
def ray_cluster(request):
    """The address of a Ray started here, which ends with this process.

    It has a dashboard only where a test submits jobs to it: that is nine processes which start together, and on a busy
    machine Ray's own 30 seconds are over before it is up.
    """
    ray = pytest.importorskip("ray")
    os.environ.update(ENVIRONMENT)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", OMP_NUM_THREADS="1")
    context = ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=200 * 2**20,
        include_dashboard=any("test_job.py" in item.nodeid for item in request.session.items),
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield context.address_info
    ray.shutdown()


@pytest.fixture(scope="session")
def small_experiment():
    """`make(directory, overrides...)`: a small experiment on digits that runs in `directory`."""

    def make(directory: Path, *overrides: str) -> Experiment:
        return Experiment.from_yaml(CONFIG, [*SMALL, f"name={directory.name}", f"runs={directory.parent}", *overrides])

    return make


@pytest.fixture(scope="session")
def small_job():
    """`command(directory, overrides...)`: the same as a command line of the main job."""

    def command(directory: Path, *overrides: str) -> list[str]:
        here = [f"name={directory.name}", f"runs={directory.parent}"]
        return [sys.executable, str(JOB), "--config", str(CONFIG), *SMALL, *here, *overrides]

    return command


@pytest.fixture(scope="session")
def undisturbed(ray_cluster, small_experiment, tmp_path_factory):
    """The directory of a run of 40 rounds of each arm on two workers, to its end."""
    experiment = small_experiment(tmp_path_factory.mktemp("runs") / "undisturbed", LONGER)
    result = experiment.run(quiet=True)
    assert [summary["rounds"] for summary in result.summaries] == [40, 40]
    return experiment.directory
