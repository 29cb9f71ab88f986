"""The reference line: the labels without noise are what is trained on, where somebody knows them."""

import numpy as np
import pytest
import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.sources import source_of
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate


def experiment(**data):
    return validate(
        {
            "data": {"num_validation": 100, **data},
            "method": "true_labels",
            "controls": ["cross_entropy"],
            "ray": {"enabled": False},
            "training": {"num_rounds": 2, "num_steps": 2, "val_batch_size": 20},
        },
        source="the test",
    )


def run_of(config):
    return build_run(config, group=SingleProcess(), device=torch.device("cpu"))


def test_it_trains_on_the_same_images_with_their_labels_before_noise():
    config = experiment(noise={"kind": "flip_to_two", "rate": 0.4})
    run, labels = run_of(config), source_of(config).labels()
    batches = {arm.name: (arm.data or run.data).round(0).train for arm in run.arms}
    changed = 0
    for right, given in zip(batches["true_labels"], batches["cross_entropy"], strict=True):
        assert torch.equal(right.indices, given.indices) and torch.equal(right.inputs, given.inputs)
        assert np.array_equal(right.targets, labels.true[right.indices])
        changed += int((right.targets != given.targets).sum())
    assert changed > 0


def test_labels_of_the_users_own_are_known_to_nobody(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
        for place in range(80):
            part = "test" if place < 4 else "train"
            Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / part / name / f"{place}.png")
    with pytest.raises(UserError, match="nobody knows those of this data set; leave it out"):
        run_of(experiment(name="folder", root=str(tmp_path)))
