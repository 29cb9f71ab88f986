"""`ray job submit` of the main job to a running cluster, as a user would type it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2t_ray.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def job_agent(ray_cluster):
    """Ray takes jobs once its agent is up, which on a busy machine is long after everything else."""
    from ray.job_submission import JobSubmissionClient

    client, give_up = JobSubmissionClient(f"http://{ray_cluster['webui_url']}"), time.monotonic() + 120
    while True:
        try:
            client.submit_job(entrypoint="true")
            return
        except RuntimeError:
            assert time.monotonic() < give_up
            time.sleep(1)


def submit(cluster, command: list[str]) -> subprocess.CompletedProcess:
    """The command's paths are those inside the uploaded copy."""
    ray = Path(sys.executable).parent / "ray"
    address = f"http://{cluster['webui_url']}"
    relative = [argument.replace(f"{REPOSITORY}/", "") for argument in command[1:]]
    return subprocess.run(
        [ray, "job", "submit", "--address", address, "--working-dir", REPOSITORY, "--", sys.executable, *relative],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )


def test_a_submitted_job_streams_its_progress_and_leaves_its_run(ray_cluster, small_job, tmp_path):
    directory = tmp_path / "submitted"
    done = submit(ray_cluster, small_job(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "l2t_dln  round 10/10" in done.stdout
    assert f"results in {directory}" in done.stdout
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint is not None and checkpoint.round == 10


def test_a_submitted_job_that_fails_says_so(ray_cluster, small_job, tmp_path):
    done = submit(ray_cluster, small_job(tmp_path / "wrong", "training.learnig_rate=1"))
    assert done.returncode == 1
    assert "did you mean training.learning_rate?" in done.stdout + done.stderr
    assert "exit code 2" in done.stdout + done.stderr


def test_ray_job_stop_leaves_a_checkpoint_and_says_how_to_go_on(ray_cluster, small_job, tmp_path):
    directory = tmp_path / "submitted"

    def ray(*arguments: str) -> str:
        command = [Path(sys.executable).parent / "ray", "job", arguments[0], "--address", address, *arguments[1:]]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint is not None and checkpoint.round == int(sentence[1])
    assert "STOPPED" in ray("status", "stopped").upper()
