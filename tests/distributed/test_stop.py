"""A run on Ray that is asked to stop: by a signal to its driver, and by `ray job stop`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from l2t_ray.distributed.launch import launch
from l2t_ray.interfaces import StoppedError
from l2t_ray.run import Experiment
from l2t_ray.stopping import listening
from l2t_ray.training.checkpoint import CheckpointStore, Cut

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).parents[2]


def last_cut(directory: Path) -> Cut:
    cut = CheckpointStore(directory / "checkpoints").latest()
    assert cut is not None
    return cut


def test_ctrl_c_ends_the_round_and_the_run_goes_on_to_the_same_end(ray_cluster, small_experiment, tmp_path):
    """On one worker, whose end is known: that of the plain process, bit for bit."""
    many = ["training.num_rounds=60", "training.checkpoint_every=100", "ray.num_workers=1"]
    experiment = small_experiment(tmp_path / "stopped", *many)
    said = []
    with listening(said.append) as stop:

        def on_rows(rows):
            if rows and not stop.is_asked():
                stop.rounds_began()
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(StoppedError, match=r"stopped after round \d+ of 60 of \w+$"):
            launch(experiment.config, experiment.directory, on_rows=on_rows, stop=stop)
    assert said == ["stopping after this round; Ctrl-C again ends at once"]
    cut = last_cut(experiment.directory)
    assert cut.round < 60

    (experiment.directory / "config.yaml").write_text(experiment.config.to_yaml())
    Experiment.resume(experiment.directory, ["ray.enabled=false"]).run(quiet=True)
    undisturbed = small_experiment(tmp_path / "undisturbed", *many, "ray.enabled=false")
    undisturbed.run(quiet=True)
    resumed, expected = last_cut(experiment.directory), last_cut(undisturbed.directory)
    assert torch.equal(resumed.state.student.theta, expected.state.student.theta)
    assert resumed.teacher is not None and expected.teacher is not None
    assert torch.equal(resumed.teacher["phi"], expected.teacher["phi"])
    assert [row["train_loss"] for row in resumed.rows] == [row["train_loss"] for row in expected.rows]


@pytest.mark.slow
def test_ray_job_stop_leaves_a_checkpoint_and_says_how_to_go_on(ray_cluster, small_job, tmp_path):
    directory = tmp_path / "submitted"

    def ray(*arguments: str) -> str:
        command = [Path(sys.executable).parent / "ray", "job", arguments[0], "--address", address, *arguments[1:]]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout

    address = f"http://{ray_cluster['webui_url']}"
    command = [argument.replace(f"{REPOSITORY}/", "") for argument in small_job(directory, "training.num_rounds=2000")]
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "excludes": [".git", "runs"]})
    where = ["--working-dir", str(REPOSITORY), "--runtime-env-json", patience, "--submission-id", "stopped"]
    ray("submit", *where, "--no-wait", "--", sys.executable, *command[1:])
    give_up = time.monotonic() + 200
    while "round 1/" not in (logs := ray("logs", "stopped")):
        assert time.monotonic() < give_up, logs
        time.sleep(1)
    ray("stop", "stopped")
    while "go on with --resume" not in (logs := ray("logs", "stopped")):
        assert time.monotonic() < give_up, logs
        time.sleep(1)
    sentence = re.search(r"stopped after round (\d+) of 2000 of cross_entropy; go on with --resume (\S+)", logs)
    assert sentence, logs
    assert last_cut(directory).round == int(sentence[1])
    assert "STOPPED" in ray("status", "stopped").upper()
