"""Images with masks go through the same assembly as images with labels."""

import numpy as np
import pytest
import torch
from replicas import run_alone, run_interrupted, run_on_both

from l2t_ray.assembly.run import build_run, build_trainee
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.trained import inspect_students
from l2t_ray.assembly.trial import try_arms
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run.results import write_results
from l2t_ray.settings.experiment import validate

SCENES = {
    "data": {
        "name": "digit_scenes",
        "options": {"num_train": 12, "num_validation": 6, "num_test": 4},
        "masks": {"crop": 32, "pixels": 60, "error": "soft_miou"},
    },
    "student": {"name": "pspnet", "width": 8, "norm": "group"},
    "training": {
        "num_rounds": 4,
        "num_steps": 2,
        "batch_size": 4,
        "val_batch_size": 3,
        "learning_rate": 0.02,
        "momentum": 0.9,
    },
    "method": {"name": "l2t_dln", "loss": {"hidden": 6}, "teacher": "adam"},
    "controls": ["cross_entropy"],
    "ray": {"enabled": False},
}
CPU = torch.device("cpu")


def scenes(**sections):
    return validate(SCENES | sections, source="a test")


@pytest.fixture(scope="module")
def whole():
    return run_alone(scenes())


def test_it_is_measured_by_its_own_metrics(whole):
    assert set(whole.finished) == {"cross_entropy", "l2t_dln"}
    last = whole.rows[-1]
    assert 0 < last["test_miou"] < 1 and 0 < last["test_accuracy"] <= 1
    assert last["hypergradient_norm"] > 0 and any(name.startswith("test_iou_") for name in last)


def test_what_is_shown_at_the_end_is_what_the_metric_saw(whole):
    source = source_of(scenes())
    inspected = inspect_students(build_trainee(scenes(), source, SingleProcess()), source, whole.finished)
    assert len(inspected.images) == len(inspected.truths) == 4  # all there are
    matrix, overlaps = inspected.students["l2t_dln"].charts
    assert overlaps.whole == ("mIoU", pytest.approx(whole.rows[-1]["test_miou"], abs=1e-12))
    counts = np.zeros_like(matrix.counts)
    for truth, said in zip(inspected.truths, inspected.students["l2t_dln"].answers, strict=True):
        np.add.at(counts, (truth.classes, said.classes), 1)
    np.testing.assert_array_equal(counts, matrix.counts)


def test_a_run_leaves_its_pictures_and_a_table_says_which_classes_count(tmp_path):
    short = SCENES["training"] | {"num_rounds": 2, "num_steps": 1}
    loss = {"hidden": 6, "label_entries": "table"}
    data = SCENES["data"] | {"options": {"num_train": 12, "num_validation": 6, "num_test": 1}}
    config = scenes(data=data, method=SCENES["method"] | {"loss": loss}, training=short, controls=[])
    checkpoint = run_alone(config)
    result = write_results(config, tmp_path, checkpoint, figures=True)
    drawn = {path.stem for path in (result.directory / "figures").iterdir()}
    assert drawn >= {"examples", "class_iou", "confusion", "loss_weights_over_rounds", "loss_surfaces"}
    assert {f"class_weight_{number}" for number in range(11)} < checkpoint.rows[-1].keys()


def test_it_resumes_bit_for_bit(whole, tmp_path):
    end = run_interrupted(scenes(), tmp_path, after=6)  # the second round of the second arm
    assert torch.equal(end.state.student.theta, whole.state.student.theta)


def test_two_workers_are_one(whole, run_on_two_workers):
    """Slices of unequal size, with unequal numbers of pixels that count."""
    first, second = run_on_both(scenes(controls=[]), run_on_two_workers)
    assert torch.equal(first.state.student.theta, second.state.student.theta)
    torch.testing.assert_close(first.state.student.theta, whole.state.student.theta, rtol=1e-3, atol=1e-5)
    assert first.rows[-1]["test_miou"] == pytest.approx(whole.rows[-1]["test_miou"], rel=1e-6)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"student": {"name": "resnet8"}},
            r"must give logits \[\d, 11, 64, 64\], .*student\.name=pspnet",
        ),
        ({"method": "recommended"}, r"the recommended method is for images with one label each, .*method=l2t_dln"),
        (
            {"method": {"name": "l2t_dln", "loss": {"memory": 1}}},
            r"method\.loss\.memory goes by whole images, and rows of segmentation are parts",
        ),
        ({"method": "mentornet"}, r"mentornet goes by whole images"),
        (
            {"method": {"name": "l2t_dln", "reweight": {}}},
            r"method\.reweight goes by whole images, .*set method.reweight=null",
        ),
    ],
)
def test_what_cannot_hold_for_pixels_is_refused(sections, sentence):
    config = scenes(controls=[], **sections)
    with pytest.raises(UserError, match=sentence):
        try_arms(build_run(config, group=SingleProcess(), device=CPU), config)
