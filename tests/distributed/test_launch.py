"""Whole runs on real Ray: how they end, well or not. What happens when parts of them die is in test_failures.py."""

import os
import signal
import subprocess
import time

import pytest
from same_end import LONGER, assert_same_end, last_checkpoint

from l2t_ray.distributed import launch as launching
from l2t_ray.distributed.launch import launch
from l2t_ray.interfaces import DivergenceError, UserError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.mark.failure("driver killed, and the same command again", "2 workers")
def test_a_killed_driver_started_again_by_the_same_command_changes_nothing(
    ray_cluster, undisturbed, small_job, tmp_path
):
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
    assert last_checkpoint(directory).round < 40 or last_checkpoint(directory).arm == "cross_entropy"
    done = subprocess.run(small_job(directory, LONGER), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert_same_end(directory, undisturbed)


@pytest.mark.failure("checkpoint directory cannot be written", "2 workers", ends="one sentence, exit code 2")
def test_a_checkpoint_that_rank_0_cannot_write_ends_all_workers(ray_cluster, small_experiment, tmp_path):
    experiment = small_experiment(tmp_path / "full")
    experiment.directory.mkdir()
    (experiment.directory / "checkpoints").write_text("a file where the directory should be")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*runs=DIR"):
        launch(experiment.config, experiment.directory, on_rows=lambda rows: None)
    assert time.monotonic() - began < 120  # well before ray.timeout_s


@pytest.mark.slow
@pytest.mark.filterwarnings("default:l2t_dln diverged")
def test_divergence_names_its_round_and_leaves_the_checkpoint(ray_cluster, small_experiment, tmp_path):
    experiment = small_experiment(
        tmp_path / "diverged", "controls=[]", "training.learning_rate=50", "training.checkpoint_every=1"
    )
    with pytest.raises(DivergenceError, match=r"l2t_dln diverged in round [1-9]: the .* try a smaller"):
        experiment.run(quiet=True)
    assert last_checkpoint(experiment.directory).diverged.keys() == {"l2t_dln"}


def test_a_directory_in_training_already_is_refused_in_one_sentence(
    ray_cluster, small_experiment, tmp_path, monkeypatch
):
    monkeypatch.setattr(launching, "NAME_WAIT_S", 0.5)  # this one will not end by itself
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
