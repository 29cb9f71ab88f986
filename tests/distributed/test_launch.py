"""Whole runs on real Ray, and what happens when parts of them die. Every run that ends must end the same."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from l2t_ray.distributed.launch import launch
from l2t_ray.interfaces import DivergenceError, UserError
from l2t_ray.tracking.metrics import TIMES
from l2t_ray.training.checkpoint import CheckpointStore, Cut

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def last_cut(directory: Path) -> Cut:
    cut = CheckpointStore(directory / "checkpoints").latest()
    assert cut is not None
    return cut


LONGER = "training.num_rounds=40"
"""Seconds of training, so that there is time to kill two parts of it one after the other."""


def same(a, b) -> bool:
    """Equal to the last bit, timings apart."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same(a: Cut, b: Cut) -> None:
    for part in ("arm", "round", "state", "teacher", "rows", "snapshots", "finished"):
        assert same(getattr(a, part), getattr(b, part)), part


def kill_actor(class_name: str) -> None:
    """SIGKILL to the process of one living actor of this test's own Ray."""
    from ray.util.state import list_actors

    actors = list_actors(filters=[("class_name", "=", class_name), ("state", "=", "ALIVE")])
    os.kill(actors[-1].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, small_experiment, tmp_path_factory):
    """A run of 40 rounds of each arm on two workers, to its end."""
    experiment = small_experiment(tmp_path_factory.mktemp("runs") / "undisturbed", LONGER)
    result = experiment.run(quiet=True)
    assert [summary["rounds"] for summary in result.summaries] == [40, 40]
    return last_cut(experiment.directory)


@pytest.mark.slow  # minutes, and the second kill must fall into a run that may be over by then
def test_a_killed_worker_and_a_killed_teacher_change_nothing(ray_cluster, undisturbed, small_experiment, tmp_path):
    experiment = small_experiment(tmp_path / "killed", LONGER)
    victims = ["RayTrainWorker", "TeacherService"]
    seen = []

    def on_rows(rows):
        seen.extend(rows)
        reached = max((row["round"] for row in rows if row["arm"] == "l2t_dln"), default=0)
        if victims and reached >= 1:
            kill_actor(victims.pop(0))

    with pytest.warns(UserWarning, match=r"lost worker .* going on from the last checkpoint \(failure 1 of"):
        launch(experiment.config, experiment.directory, on_rows=on_rows)
    assert not victims
    assert_same(last_cut(experiment.directory), undisturbed)
    assert len(seen) >= 80


def test_a_run_whose_driver_is_killed_resumes_to_the_same_end(ray_cluster, undisturbed, small_job, tmp_path):
    directory = tmp_path / "resumed"
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster["gcs_address"], "PYTHONWARNINGS": "ignore"}
    driver = subprocess.Popen(
        small_job(directory, LONGER),
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 150
        while not list((directory / "checkpoints").glob("0*")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert last_cut(directory).round < 40 or last_cut(directory).arm == "cross_entropy"
    job = small_job(directory)[:2]
    done = subprocess.run(
        [*job, "--resume", str(directory)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert_same(last_cut(directory), undisturbed)


def test_a_checkpoint_that_rank_0_cannot_write_ends_all_workers(ray_cluster, small_experiment, tmp_path):
    experiment = small_experiment(tmp_path / "full")
    experiment.directory.mkdir()
    (experiment.directory / "checkpoints").write_text("a file where the directory should be")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*runs=DIR"):
        launch(experiment.config, experiment.directory, on_rows=lambda rows: None)
    assert time.monotonic() - began < 120  # well before ray.timeout_s


@pytest.mark.filterwarnings("default:l2t_dln diverged")
def test_divergence_names_its_round_and_leaves_the_checkpoint(ray_cluster, small_experiment, tmp_path):
    experiment = small_experiment(
        tmp_path / "diverged", "controls=[]", "training.learning_rate=50", "training.checkpoint_every=1"
    )
    with pytest.raises(DivergenceError, match=r"l2t_dln diverged in round [1-9]: the .* try a smaller"):
        experiment.run(quiet=True)
    assert last_cut(experiment.directory).diverged.keys() == {"l2t_dln"}


def test_a_directory_in_training_already_is_refused_in_one_sentence(ray_cluster, small_experiment, tmp_path):
    experiment = small_experiment(tmp_path / "twice", "training.num_rounds=3")
    refusals = []

    def try_again(rows):
        del rows
        if not refusals:
            with pytest.raises(UserError, match="in training on this cluster already") as refused:
                launch(experiment.config, experiment.directory, on_rows=lambda rows: None)
            refusals.append(refused)

    launch(experiment.config, experiment.directory, on_rows=try_again)
    assert refusals
