"""The loss of some of a cluster's machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machines import cluster_of
from same_end import LONGER, assert_same_end, last_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs/digits.yaml"


def train_on(cluster, directory, small_job, victim, *overrides, round_index=25):
    """The job on the cluster, with the machine of the victim dying in one round. What it printed."""
    mark = directory.with_suffix(".mark")
    _, job, _, config, *settings = small_job(directory, *overrides)
    del job
    command = [sys.executable, HERE / "struck_job.py", mark, str(round_index), victim, config, *settings]
    environment = {
        **os.environ,
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mark.exists()
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def three_machines(ray_cluster):
    """The head has a GPU, in name, and no CPU for workers; each of the three others can hold both workers."""
    del ray_cluster  # its environment
    with cluster_of({"num_cpus": 0, "num_gpus": 1}, *[{"num_cpus": 2}] * 4) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("worker", marks=pytest.mark.failure("machine of both workers lost", "3 machines")),
        pytest.param("teacher", marks=pytest.mark.failure("machine of the teacher lost", "3 machines")),
    ],
)
def test_a_lost_machine_changes_nothing(three_machines, undisturbed, small_job, tmp_path, victim):
    said = train_on(three_machines, tmp_path / "lost", small_job, victim, LONGER)
    assert "going on from the last checkpoint" in said
    assert_same_end(tmp_path / "lost", undisturbed)


def relative_distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.failure("one of two workers' machines lost, ray.min_workers=1", "3 machines", ends="same to 1e-5")
def test_training_goes_on_with_fewer_workers(ray_cluster, small_experiment, small_job, tmp_path):
    del ray_cluster
    settings = ["controls=[]", "ray.min_workers=1"]
    with cluster_of({"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as cluster:
        said = train_on(cluster, tmp_path / "fewer", small_job, "worker", *settings, round_index=7)
    assert "going on from the last checkpoint" in said
    fewer = last_checkpoint(tmp_path / "fewer")
    whole = small_experiment(tmp_path / "whole", "controls=[]", "ray.enabled=false")
    whole.run(quiet=True)
    one = last_checkpoint(tmp_path / "whole")
    assert [row["round"] for row in fewer.rows] == list(range(10))
    assert relative_distance(fewer.state.student.theta, one.state.student.theta) <= 1e-5
    assert relative_distance(fewer.teacher["phi"], one.teacher["phi"]) <= 1e-5
    assert not torch.equal(fewer.state.student.theta, one.state.student.theta)  # two workers did take part
