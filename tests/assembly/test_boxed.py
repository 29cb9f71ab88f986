"""Images with boxes, from settings to minibatches."""

import numpy as np
import pytest
import torch

from l2t_ray.assembly.boxed import BoxedSource
from l2t_ray.assembly.identity import fingerprint
from l2t_ray.assembly.images import load_dataset, open_dataset
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.tasks import build_task
from l2t_ray.interfaces import Data, UserError
from l2t_ray.settings.experiment import ExperimentConfig, validated
from l2t_ray.settings.tree import Settings

CANVASES = {
    "data.name": "digit_boxes",
    "student.name": "yolo",
    "student.depth": "tiny",
    "method.name": "l2t_dln",
    "data.options": {"num_train": 12, "num_validation": 6, "num_test": 5},
    "data.boxes.size": 64,
    "training.batch_size": 4,
    "training.val_batch_size": 3,
    "training.num_steps": 2,
}


def served(**changes):
    given = CANVASES | {key.replace("__", "."): value for key, value in changes.items()}
    config = validated(ExperimentConfig, Settings({}, "in a test").with_settings(given, place="in a test"))
    return config, source_of(config)


def by_image(batches):
    """Boxes of each image, by its row."""
    return {
        int(row): boxes[labels >= 0]
        for batch in batches
        for row, boxes, labels in zip(batch.indices, batch.targets["boxes"], batch.targets["labels"], strict=True)
    }


def test_a_configuration_serves_inputs_of_one_size_and_equal_shares():
    _, source = served(data__boxes__size=[64, 96])
    data = source.plain()
    assert isinstance(source, BoxedSource) and isinstance(data, Data) and data.num_classes == 5
    train, val = data.round(3)
    most = source.dataset.train.most
    assert [batch.inputs.shape for batch in train] == [(4, 3, 64, 96)] * 2 and val.inputs.shape == (3, 3, 64, 96)
    assert train[0].targets["boxes"].shape == (4, most, 4) and val.targets["labels"].shape == (3, most)
    assert all((batch.indices < 12).all() for batch in train) and (val.indices >= 12).all()
    torch.testing.assert_close(train[0].weights, torch.full((4,), 0.25))
    assert sum(len(batch.weights) for batch in data.test()) == 5


def test_noise_is_in_the_training_boxes_alone():
    _, clean = served(data__augment="none")
    _, noisy = served(data__augment="none", data__noise={"kind": "shifted", "rate": 0.9})
    for batches in ("validation", "test"):
        before, after = ([*getattr(source.plain(), batches)()] if batches == "test" else
                         [*source.plain().validation(0)] for source in (clean, noisy))  # fmt: skip
        assert all(by_image(before)[row].equal(boxes) for row, boxes in by_image(after).items())
    rows = np.arange(12)
    before, after = by_image(clean.images(rows)), by_image(noisy.images(rows))
    assert sum(not before[row].equal(after[row]) for row in range(12)) >= 11
    mixed = by_image(batch for index in range(6) for batch in noisy.mixed().round(index).train)
    whole = by_image(clean.plain().validation(0))
    judges = [row for row in mixed if row >= 12]
    assert judges and all(mixed[row].equal(whole[row]) for row in judges)  # taught with their own clean boxes


def test_dropped_boxes_leave_the_shapes_alone():
    _, source = served(data__noise={"kind": "dropped", "rate": 0.9})
    train, val = source.plain().round(0)
    assert train[0].targets["labels"].shape[1] == val.targets["labels"].shape[1] == source.dataset.train.most
    assert (train[0].targets["labels"] >= 0).sum() < 8


def test_validation_boxes_may_have_the_noise_too():
    _, source = served(
        data__augment="none", data__noise={"kind": "dropped", "rate": 0.9}, data__validation_labels="observed"
    )
    _, clean = served(data__augment="none")
    noisy, whole = by_image(source.plain().validation(0)), by_image(clean.plain().validation(0))
    assert sum(map(len, noisy.values())) < 0.5 * sum(map(len, whole.values()))


def test_of_a_rare_class_few_images_are_taught():
    """On images with boxes the class is one of several, and the others go with it."""
    _, source = served()
    assert isinstance(source, BoxedSource)
    rows = source.split(0).train
    has_one = [row for row in rows.tolist() if (source.dataset.train.boxes[row].labels == 1).any()]
    _, thin = served(data__imbalance={"kind": "rare", "of": source.dataset.train.class_names[1], "factor": 3})
    kept = thin.split(0).train.tolist()
    assert len(set(kept) & set(has_one)) == len(has_one) // 3 and set(rows.tolist()) - set(has_one) <= set(kept)
    assert (thin.split(0).validation == source.split(0).validation).all()


def test_another_set_has_another_fingerprint():
    prints = []
    for number in (12, 13):
        config, source = served(data__options={"num_train": number, "num_validation": 6, "num_test": 5})
        prints.append(fingerprint(config, source.dataset)["data"])
    assert prints[0]["training images"] != prints[1]["training images"]
    assert prints[0]["test images"] == prints[1]["test images"]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.noise", {"kind": "uniform", "rate": 0.2}, r"data\.noise\.kind is 'uniform', and digit_boxes has boxes"),
        ("data.noise", {"kind": "dropped", "rate": 0.2, "strength": 0.1}, r"noise\.strength is 0\.1, which .*=dropped"),
        ("data.noise", {"kind": "shifted", "strength": 1}, r"data\.noise\.strength .* should be less than 1"),
        (
            "data.imbalance",
            {"kind": "rare", "of": "x", "factor": 2},
            r"imbalance\.of is 'x', and .* has the classes .*;",
        ),
        ("data.imbalance", {"kind": "rare", "factor": 2}, r"imbalance\.kind is 'rare'; set imbalance\.of to the name"),
        ("data.imbalance", {"kind": "step", "of": "x", "factor": 2}, r"imbalance\.of is 'x', which .*=step does not"),
        ("data.masks.crop", 32, r"data\.masks is of images with masks, and digit_boxes has boxes"),
        ("data.crop_padding", "reflect", r"set data\.crop_padding=zero"),
        ("data.split", "redivide", r"validation images of digit_boxes are set apart; set data\.split=fixed"),
        ("training.batch_size", 13, r"training\.batch_size=13 is more than the 12 images"),
        ("data.boxes.size", 65, r"data\.boxes\.size"),
        ("data.boxes.size", [64, 0], r"data\.boxes\.size"),
        ("data.boxes.scale", [2.0, 0.5], r"boxes\.scale is \[2\.0, 0\.5\]; give the least factor first"),
    ],
)
def test_settings_that_do_not_fit_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        served(**{key.replace(".", "__"): value})[1].plain()


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        (
            "digits",
            "data.noise",
            {"kind": "shifted", "rate": 0.2},
            r"data\.noise\.kind=shifted is of images with boxes",
        ),
        ("digits", "data.boxes.size", 64, r"data\.boxes is of images with boxes, and digits has one label an image"),
        ("digit_scenes", "data.boxes.size", 64, r"data\.boxes is of images with boxes, and digit_scenes has masks"),
        ("digit_scenes", "data.noise", {"kind": "mixed", "rate": 0.2}, r"'mixed', which images with masks do not know"),
    ],
)
def test_settings_of_boxes_are_refused_elsewhere(name, key, value, message):
    given = {"data.name": name, "data.num_validation": 100, key: value}
    config = validated(ExperimentConfig, Settings({}, "in a test").with_settings(given, place="in a test"))
    with pytest.raises(UserError, match=message):
        source_of(config)


@pytest.mark.parametrize("by_class", [False, True])
def test_class_decisions_are_weighed_by_stride_or_by_class(by_class):
    config, source = served(data__boxes__by_class=by_class)
    task = build_task(config)
    assert task.kinds["l_loc"] == ("stride 16", "stride 32")
    assert task.kinds["l_cls"] == (source.dataset.train.class_names if by_class else task.kinds["l_loc"])
    batch = source.plain().round(0).val
    outputs = [torch.zeros(3, 3, side, side, 10) for side in (4, 2)]
    term = task.terms(outputs, batch).values["l_cls"]
    assert len(term.kinds) and int(term.kinds.max()) > 1 if by_class else int(term.kinds.max()) <= 1


def test_what_needs_a_label_an_image_says_so():
    config, _ = served()
    with pytest.raises(UserError, match=r"data\.name=digit_boxes has boxes, and this needs images with a label each"):
        load_dataset(config.data)
    assert open_dataset(config.data).num_classes == 5
