"""Images with masks, from settings to minibatches."""

import pytest
import torch

from l2t_ray.assembly.identity import fingerprint
from l2t_ray.assembly.images import load_dataset, open_dataset
from l2t_ray.assembly.masked import MaskedSource
from l2t_ray.interfaces import Data, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig, validated
from l2t_ray.settings.tree import Settings
from l2t_ray.tasks.segmentation import Segmentation

SCENES = {
    "data.name": "digit_scenes",
    "method.name": "l2t_dln",
    "data.options": {"num_train": 12, "num_validation": 6, "num_test": 5},
    "data.masks.crop": 32,
    "data.masks.pixels": 50,
    "training.batch_size": 4,
    "training.val_batch_size": 3,
    "training.num_steps": 2,
}


def served(**changes):
    given = SCENES | {key.replace("__", "."): value for key, value in changes.items()}
    config = validated(ExperimentConfig, Settings({}, "in a test").with_settings(given, place="in a test"))
    dataset = open_dataset(config.data)
    task = Segmentation(dataset.train.class_names, ignore=dataset.train.ignore)
    source = MaskedSource(config, dataset, task, group=SingleProcess(), device=torch.device("cpu"))
    return config, source.plain()


def test_a_configuration_serves_crops_and_whole_scenes():
    _, data = served()
    assert isinstance(data, Data) and data.num_classes == 11
    train, val = data.round(3)
    assert [batch.inputs.shape for batch in train] == [(4, 1, 32, 32)] * 2 and val.inputs.shape == (3, 1, 64, 64)
    assert all((batch.indices < 12).all() for batch in train) and (val.indices >= 12).all()
    torch.testing.assert_close(train[0].weights, torch.full((4,), 1 / 200))  # a share of each of 4 * 50 pixels
    assert sum(len(batch.weights) for batch in data.test()) == 5


def test_validation_is_cropped_where_it_is_asked_for():
    _, data = served(data__augment_validation=True)
    assert data.round(0).val.inputs.shape == (3, 1, 32, 32)


def test_another_set_has_another_fingerprint():
    prints = []
    for number in (12, 13):
        options = {"num_train": number, "num_validation": 6, "num_test": 5}
        config, _ = served(data__options=options)
        prints.append(fingerprint(config, open_dataset(config.data))["data"])
    assert prints[0]["training images"] != prints[1]["training images"]
    assert prints[0]["test images"] == prints[1]["test images"]


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "data.imbalance",
            {"kind": "step", "factor": 9},
            r"data\.imbalance\.kind is 'step', which is of examples with one",
        ),
        ("data.noise", {"kind": "uniform", "rate": 0.2}, r"data\.noise\.kind is 'uniform', which images with masks"),
        ("data.validation_labels", "observed", r"set data\.validation_labels=clean"),
        ("data.split", "redivide", r"validation images of digit_scenes are set apart; set data\.split=fixed"),
        ("training.batch_size", 13, r"training\.batch_size=13 is more than the 12 images"),
        ("data.masks.pixels", 2000, r"masks\.pixels is 2000, more than the 1024 pixels of masks\.crop=32 squared"),
        ("data.masks.scale", [2.0, 0.5], r"masks\.scale is \[2\.0, 0\.5\]; give the least factor first"),
        (
            "data.name",
            "digit_scene",
            r"data\.name .*must name a data set; did you mean digit_scenes\?, got 'digit_scene'",
        ),
        ("data.name", "x", r"must name a data set; it is one of digits, .*, or my\.module:make, got 'x'"),
    ],
)
def test_settings_that_masks_do_not_know_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        served(**{key.replace(".", "__"): value})


def test_what_needs_one_label_an_image_refuses_masks():
    config, _ = served()
    with pytest.raises(UserError, match=r"data\.name=digit_scenes has masks, and this needs images with a label each"):
        load_dataset(config.data)


def test_shrunk_scenes_are_served_and_told_from_whole_ones():
    whole, _ = served()
    config, data = served(data__masks__shrink=2, data__masks__crop=16)
    assert data.round(0).val.inputs.shape == (3, 1, 32, 32)
    prints = [fingerprint(each, open_dataset(each.data))["data"]["test images"] for each in (whole, config)]
    assert prints[0] != prints[1]
