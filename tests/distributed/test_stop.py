"""A run on Ray that is asked to stop by a signal to its driver. `ray job stop`: see test_job.py."""

import os
import signal
from pathlib import Path

import pytest
import torch

from l2t_ray.distributed.launch import launch
from l2t_ray.interfaces import StoppedError
from l2t_ray.run import Experiment
from l2t_ray.stopping import listening
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def last_checkpoint(directory: Path) -> Checkpoint:
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint


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
    # The signal may reach the workers in the last round of an arm: what must be left is work, in this arm or the next.
    stopped_at = len(last_checkpoint(experiment.directory).rows)

    (experiment.directory / "config.yaml").write_text(experiment.config.to_yaml())
    Experiment.resume(experiment.directory, ["ray.enabled=false"]).run(quiet=True)
    undisturbed = small_experiment(tmp_path / "undisturbed", *many, "ray.enabled=false")
    undisturbed.run(quiet=True)
    resumed, expected = last_checkpoint(experiment.directory), last_checkpoint(undisturbed.directory)
    assert 0 < stopped_at < len(resumed.rows) == 120
    assert torch.equal(resumed.state.student.theta, expected.state.student.theta)
    assert resumed.teacher is not None and expected.teacher is not None
    assert torch.equal(resumed.teacher["phi"], expected.teacher["phi"])
    assert [row["train_loss"] for row in resumed.rows] == [row["train_loss"] for row in expected.rows]
