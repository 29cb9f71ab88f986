"""Real signals to a real job: it ends its round, keeps everything, says how to go on, and ends as if never stopped."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from l2t_ray.run import Experiment
from l2t_ray.stopping import listening
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore

REPOSITORY = Path(__file__).parents[1]
SMALL = [
    "ray.enabled=false",
    "student.name=lenet",
    "training.num_rounds=30",
    "training.num_steps=3",
    "training.eval_every=20",
    "training.checkpoint_every=25",
    "method.teacher.horizon=4",
    "method.loss.init=released",
]
"""A second of training, and almost no checkpoint on the way but that of a stop."""

SECRET = {"AWS_SECRET_ACCESS_KEY": "not-to-be-told"}


def start_job(directory: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "jobs/cifar.py"), "--config", str(REPOSITORY / "configs/digits.yaml")]
    return subprocess.Popen(
        [*command, *SMALL, f"name={directory.name}", f"runs={directory.parent}", *overrides],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C reaches the whole group
    )


def await_line(job: subprocess.Popen, pattern: str) -> None:
    assert job.stdout is not None
    seen = []
    for line in job.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return
    raise AssertionError("".join(seen) + (job.stderr.read() if job.stderr else ""))


def ended(job: subprocess.Popen) -> tuple[int, str, float]:
    """Exit code, what it said on stderr, and how long that took."""
    began = time.monotonic()
    _, said = job.communicate(timeout=60)
    return job.returncode, said, time.monotonic() - began


def last_checkpoint(directory: Path) -> Checkpoint:
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_stopped_job_keeps_its_last_round_and_goes_on_bit_for_bit(tmp_path, number):
    directory = tmp_path / "stopped"
    database = tmp_path / "mlflow.db"
    is_tracked = number == signal.SIGTERM  # importing MLflow costs seconds
    job = start_job(directory, f"tracking={{mlflow: {is_tracked}, uri: 'sqlite:///{database}'}}")
    await_line(job, r"round \d")
    os.killpg(job.pid, number)
    code, said, _ = ended(job)

    assert code == 130
    sentence = re.fullmatch(r"stopped after round (\d+) of 30 of (\w+); go on with --resume (\S+)\n", said)
    assert sentence, said
    checkpoint = last_checkpoint(directory)
    assert (checkpoint.round, checkpoint.arm, directory) == (int(sentence[1]), sentence[2], Path(sentence[3]))
    assert checkpoint.round not in (25, 30)
    if is_tracked:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert database in files
        assert [path for path in files if SECRET["AWS_SECRET_ACCESS_KEY"].encode() in path.read_bytes()] == []
        with sqlite3.connect(database) as store:  # without MLflow, whose import costs seconds
            assert store.execute("SELECT status FROM runs").fetchall() == [("KILLED",)]
            query = "SELECT value FROM latest_metrics WHERE key = ?"
            assert store.execute(query, [f"{checkpoint.arm}/round"]).fetchone() == (checkpoint.round - 1,)
        return
    Experiment.resume(directory).run(quiet=True)
    whole = Experiment.from_yaml(
        REPOSITORY / "configs/digits.yaml", [*SMALL, "tracking.mlflow=false", f"runs={tmp_path}", "name=whole"]
    )
    whole.run(quiet=True)
    resumed, undisturbed = last_checkpoint(directory), last_checkpoint(whole.directory)
    for part in ("arm", "round", "state", "teacher", "snapshots", "finished"):
        assert same(getattr(resumed, part), getattr(undisturbed, part)), part
    assert [row["val_error"] for row in resumed.rows] == [row["val_error"] for row in undisturbed.rows]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    directory = tmp_path / "twice"
    slow = ["student.name=resnet8", "training.batch_size=400", "training.num_steps=150"]  # seconds a round
    job = start_job(directory, *slow, "tracking.mlflow=false")
    await_line(job, r"round 1/")
    os.killpg(job.pid, signal.SIGINT)
    await_line(job, "stopping after this round; Ctrl-C again ends at once")
    os.killpg(job.pid, signal.SIGINT)
    code, said, seconds = ended(job)
    assert (code, said) == (130, f"stopped at once; go on with --resume {directory}\n")
    assert seconds < 5


def test_a_signal_before_the_first_round_interrupts_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    said = []
    with listening(said.append) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        stop.rounds_began()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop.is_asked() and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == before
