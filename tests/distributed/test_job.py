"""`ray job submit` of the main job to a running cluster, as a user would type it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2t_ray.training.checkpoint import CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).parents[2]


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
    cut = CheckpointStore(directory / "checkpoints").latest()
    assert cut is not None and cut.round == 10


def test_a_submitted_job_that_fails_says_so(ray_cluster, small_job, tmp_path):
    done = submit(ray_cluster, small_job(tmp_path / "wrong", "training.learnig_rate=1"))
    assert done.returncode == 1
    assert "did you mean training.learning_rate?" in done.stdout + done.stderr
    assert "exit code 2" in done.stdout + done.stderr
