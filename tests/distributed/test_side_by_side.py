"""Trials of a comparison as Ray tasks."""

import json
from pathlib import Path

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.studies.comparison import Comparison

CONFIG = Path(__file__).parents[2] / "configs/digits_noise40.yaml"
SMALL = [
    "tracking.mlflow=false",
    "data.num_train=60",
    "data.num_validation=20",
    "student.name=lenet",
    "training={num_rounds: 3, num_steps: 2, batch_size: 10, val_batch_size: 20, eval_every: 2, checkpoint_every: 1}",
    "controls=[cross_entropy, mw_net]",
    "method={loss_network: {init: released, hidden: 4, label_entries: constant}, teacher: adam}",
]


@pytest.mark.ray
def test_trials_side_by_side_are_those_of_one_process(ray_cluster, tmp_path):
    settings = [*SMALL, f"runs={tmp_path}"]
    made = Comparison.of(CONFIG, settings, seeds=[0], only=["cross_entropy", "mw_net"])
    made.run(quiet=True)
    alone = Comparison.of(CONFIG, [*settings, "ray.enabled=false", "name=alone"], seeds=[0], only=["mw_net"])
    alone.run(quiet=True)
    numbers = [
        json.loads((study.directory / "mw_net" / "seed0" / "outcome.json").read_text())["numbers"]["test_error"]
        for study in (made, alone)
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
    with pytest.raises(UserError, match="was trained with other settings"):
        Comparison.of(CONFIG, [*settings, "training.momentum=0.5"], seeds=[0]).run(quiet=True)
