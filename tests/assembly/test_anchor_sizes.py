"""Anchors that follow from the boxes of the training part, and stand in the run as numbers."""

import numpy as np
import pytest

from l2t_ray.assembly.anchor_sizes import with_anchors
from l2t_ray.assembly.run import build_trainee
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.tasks import build_task
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.settings.experiment import validate
from l2t_ray.students.anchors import anchors_of
from l2t_ray.students.yolo import Yolo
from l2t_ray.tasks.detection import Detection

CANVASES = {
    "data": {
        "name": "digit_boxes",
        "options": {"num_train": 12, "num_validation": 6, "num_test": 5},
        "boxes": {"size": 128},
        "augment": "none",
    },
    "student": {"name": "yolo", "depth": "tiny", "width": 0.03125, "halved": True, "anchors": "kmeans"},
    "training": {"num_rounds": 1, "num_steps": 1, "batch_size": 4, "val_batch_size": 3},
    "method": {"name": "task_loss"},
    "controls": [],
    "ray": {"enabled": False},
}


def canvases(**data):
    return validate(CANVASES | {"data": CANVASES["data"] | data}, source="a test")


def sizes(config):
    return getattr(config.student, "anchors")  # noqa: B009 (a student's settings follow from its function)


@pytest.mark.parametrize("noise", [{}, {"noise": {"kind": "scaled", "rate": 0.9}}], ids=["clean", "noisy"])
def test_they_are_those_of_the_boxes_that_are_trained_on(noise):
    """In pixels of the inputs, which are larger than the canvases; under noise, since nobody knows better."""
    config = canvases(**noise)
    source = source_of(config)
    (batch,) = source.images(source.split(0).train)
    expected = anchors_of(batch.targets["boxes"][batch.targets["labels"] >= 0], 6)
    assert np.allclose(sizes(with_anchors(config)), expected, atol=6e-3)


def test_noise_moves_them():
    assert sizes(with_anchors(canvases(noise={"kind": "scaled", "rate": 0.9}))) != sizes(with_anchors(canvases()))


def test_a_run_writes_them_down_and_trains_with_them(tmp_path):
    config = canvases().model_copy(update={"runs": tmp_path, "name": "boxes"})
    experiment = Experiment.of(config)
    again = Experiment.of(config)
    assert experiment.config == again.config and len(sizes(experiment.config)) == 6
    student = build_trainee(config, source_of(config), SingleProcess()).student.module
    assert isinstance(student, Yolo) and [pair for own in student.anchors for pair in own] == list(
        sizes(experiment.config)
    )
    task = build_task(config)
    assert isinstance(task, Detection) and task._anchors == student.anchors


def test_sizes_that_are_given_stay():
    given = canvases().model_copy(update={"student": with_anchors(canvases()).student})
    assert with_anchors(given) is given


def test_where_no_box_says_how_large_it_is_refused():
    labels = validate(CANVASES | {"data": {"name": "digits"}}, source="a test")
    with pytest.raises(UserError, match=r"student\.anchors=kmeans is of boxes, and data\.name=digits has none; leave"):
        with_anchors(labels)
    few = canvases(num_train=1)
    with pytest.raises(UserError, match=r"6 anchors need boxes of as many sizes"):
        with_anchors(few)
