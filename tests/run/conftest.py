"""Runs of half a second."""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_runs import CONFIG, TINY

from l2t_ray.run import Experiment
from l2t_ray.tracking.metrics import TIMES, read_rows


@pytest.fixture(scope="session")
def tiny():
    """`tiny(runs, overrides...)`: a small experiment on digits, called `x`."""

    def make(runs: Path, *overrides: str) -> Experiment:
        return Experiment.from_yaml(CONFIG, [*TINY, "name=x", f"runs={json.dumps(str(runs))}", *overrides])

    return make


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """The directory of a run that nobody disturbed."""
    return tiny(tmp_path_factory.mktemp("whole")).run(quiet=True, figures=False).directory


@pytest.fixture(scope="session")
def end_of():
    """`end_of(directory)`: what a run came to, times apart."""

    def end(directory: Path):
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(directory / "metrics.parquet")]
        summaries = json.loads((directory / "summary.json").read_text())
        closing = [{key: value for key, value in summary.items() if key != "seconds"} for summary in summaries]
        tensors = load_file(directory / "loss.safetensors")  # the order of the file's header is not said to be fixed
        return rows, closing, {name: tensor.tobytes() for name, tensor in tensors.items()}

    return end


@pytest.fixture(scope="session")
def killed_in():
    """`killed_in(action)`: runs it in a process of its own, which is to be killed on its way."""

    def run(action) -> None:
        child = os.fork()
        if child == 0:
            try:
                action()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    return run
