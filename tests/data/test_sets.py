"""Data sets by name, and a user's own by its import path."""

import inspect
import sys
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from pages import PAGES

from l2t_ray.data import catalog
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet, Boxes
from l2t_ray.data.catalog import load
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.data.sets import DATA_SETS
from l2t_ray.interfaces import UserError


def make(root, num_images: int, shade: int = 3):
    images = np.full((num_images, 1, 4, 4), shade, dtype=np.uint8)
    part = ImageSet(images, np.arange(num_images) % 2, np.arange(num_images), ("a", "b"), {"root": str(root)})
    return Dataset("own", part, part, (0.5,), (0.5,))


def unchecked(record, **changes):
    """As a user makes it, without the tests' type checker."""
    other = copy(record)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other


def spoilt(which: str):
    images, labels = np.zeros((4, 1, 4, 4), dtype=np.uint8), np.arange(4) % 2
    parts = {"mean": (0.5,), "std": (0.5,), "validation": None}
    train = test = ImageSet(images, labels, np.arange(4), ("a", "b"))
    if which.startswith("mask"):
        train = test = MaskedSet.of([(images[0], images[0, 0])] * 4, ("a", "b"))
    if which.startswith("box"):
        boxes = Boxes.of([[0, 0, 2, 4]], [1])
        train = test = BoxedSet.of([*images], [boxes] * 4, ("a", "b"))
    match which:
        case "float images":
            train = unchecked(train, images=images / 255)
        case "few labels":
            train = unchecked(train, labels=labels[:3])
        case "high label":
            train = replace(train, labels=labels + 1)
        case "float labels":
            train = unchecked(train, labels=labels / 1)
        case "other classes":
            test = replace(test, class_names=("b", "a"))
        case "other channels":
            test = replace(test, images=np.repeat(images, 3, axis=1))
        case "no image":
            test = replace(test, images=images[:0], labels=labels[:0], positions=labels[:0])
        case "mean":
            parts["mean"] = (0.5, 0.5)
        case "std":
            parts["std"] = (0.0,)
        case "validation":
            parts["validation"] = np.array([1, 4])
        case "mask size":
            train = MaskedSet.of([(images[0], images[0, 0, :3])], ("a", "b"))
        case "mask class":
            train = MaskedSet.of([(images[0], images[0, 0] + 2)], ("a", "b"))
        case "mask type":
            train = MaskedSet.of([(images[0], images[0, 0] / 1)], ("a", "b"))
        case "mask names":
            train = replace(train, names=["x"])
        case "box images":
            train = replace(train, images=[*images[:3]])
        case "box size":
            train = replace(train, sizes=train.sizes + 1)
        case "box class":
            train = replace(train, boxes=[boxes._replace(labels=boxes.labels + 1)] * 4)
        case "box beyond":
            train = replace(train, boxes=[Boxes.of([[0, 0, 2, 4.5]], [1])] * 4)
        case "box without area":
            train = replace(train, boxes=[Boxes.of([[2, 0, 2, 4]], [1])] * 4)
        case "box that is none":
            train = replace(train, boxes=[Boxes.of([[0, 0, float("nan"), 4]], [1])] * 4)
        case "box shapes":
            train = replace(train, boxes=[boxes._replace(crowd=np.zeros(2, dtype=bool))] * 4)
        case "box channels":
            train = replace(train, images=[*images[:3], np.zeros((3, 4, 4), dtype=np.uint8)])
    record = MaskedDataset if which.startswith("mask") else BoxedDataset if which.startswith("box") else Dataset
    return record("own", train, test, **parts)


@pytest.mark.parametrize(
    "which, message",
    [
        ("float images", r"images of the train part of .* must be uint8 \[n, channels, height, width\], got float64"),
        ("few labels", r"labels of the train part .* must be int64 \[4\], one an image, got int64 of shape \(3,\)"),
        ("high label", r"the train part .* has the label 2, where 2 classes have names"),
        ("float labels", r"labels of the train part .* got float64"),
        ("other classes", r"train and test of .* name other classes"),
        ("other channels", r"have 1 and 3 channels; give all the same"),
        ("no image", r"the test part of data\.name=test_sets:spoilt is empty"),
        ("mean", r"mean of .* must be 1 numbers, one a channel, got \(0\.5, 0\.5\)"),
        ("std", r"std of .* must be 1 positive numbers"),
        ("validation", r"validation of .* must be different row numbers of train, .* not all of its 4"),
        ("mask size", r"the mask of image 0 of the train part .* must be whole numbers \[4, 4\].*\(3, 4\)"),
        ("mask class", r"the mask of image 0 .* has the class number 2, where 2 classes have names and 255 is ignored"),
        ("mask type", r"the mask of image 0 .* got float64"),
        ("mask names", r"has 4 images, 4 sizes and 1 names"),
        ("box images", r"the train part .* has 3 images and 4 sizes; give one of each"),
        ("box size", r"image 0 of the train part .* sizes say \[5, 5\], got uint8 of shape \(1, 4, 4\)"),
        ("box class", r"boxes of image 0 .* have the labels 2 to 2, where 2 classes have names"),
        ("box beyond", r"boxes of image 0 .* must be x1 < x2, y1 < y2 within its 4x4 pixels"),
        ("box without area", r"boxes of image 0 .* must be x1 < x2"),
        ("box that is none", r"boxes of image 0 .* must be x1 < x2"),
        ("box shapes", r"boxes of image 0 .* \(Boxes\.of makes them so\), got the shapes .*\(2,\)"),
        ("box channels", r"image 3 .* has 3 channels, the image before it 1"),
    ],
)
def test_own_sets_whose_parts_do_not_fit_are_refused(tmp_path, which, message):
    with pytest.raises(UserError, match=message):
        load("test_sets:spoilt", root=tmp_path, options={"which": which})


@pytest.mark.parametrize("which", ["good", "masks that are good", "boxes that are good"])
def test_own_sets_that_fit_are_taken(tmp_path, which):
    assert load("test_sets:spoilt", root=tmp_path, options={"which": which}).num_classes == 2


def broken():
    return 1 // 0


def something_else():
    return 7


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_line_names_functions_that_take_what_they_are_given(name):
    entry = DATA_SETS[name]
    for path in filter(None, (entry.make, entry.state)):
        assert inspect.isfunction(catalog._function(path, name))
        catalog._known({}, path)


def test_own_sets_are_given_their_options_and_opened_once(tmp_path):
    own = load("test_sets:make", root=tmp_path, options={"num_images": 6})
    assert len(own.train) == 6 and own.train.source == {"root": str(tmp_path)}
    assert load("test_sets:make", root=tmp_path, options={"num_images": 6}) is own
    assert load("test_sets:make", root=tmp_path, options={"num_images": 6, "shade": 9}).train.images.max() == 9


def test_the_documents_own_set_is_taken(tmp_path, monkeypatch):
    page = PAGES["docs/data_sets.md"]
    page.write_files(tmp_path)
    (name,) = page.modules
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    stripes = load(f"{name}:make", root=tmp_path, options={"num_images": 6})
    assert stripes.num_classes == 2 and len(stripes.train) == len(stripes.test) == 3
    assert all(f"`{known}`" in page.text for known in DATA_SETS)


def test_embedded_scenes_have_options(tmp_path):
    scenes = load("digit_scenes", root=tmp_path, options={"num_train": 5, "num_validation": 2, "num_test": 3})
    assert isinstance(scenes, MaskedDataset) and (len(scenes.train), len(scenes.test)) == (7, 3)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("test_sets:make", {}, r"data\.name=test_sets:make needs data\.options\.num_images; set it"),
        ("test_sets:make", {"num_image": 3}, r"data\.options\.num_image is no option of .*; it has num_images, shade"),
        ("test_sets:make", {"root": "x"}, r"data\.options\.root is no option of data\.name=test_sets:make"),
        ("digits", {"seed": 1}, r"data\.options\.seed is no option of data\.name=digits; it has none"),
        ("test_sets:make", {"num_images": "4"}, r"data\.options\.num_images must be a whole number, got '4'"),
        ("test_sets:make", {"num_images": True}, r"data\.options\.num_images must be a whole number, got True"),
        ("digit_scenes", {"num_test": 0}, r"data\.options\.num_test must be at least 1, got 0"),
        ("builtins:dict", {}, r"data\.name=builtins:dict does not say what arguments it takes"),
        ("test_sets:broken", {}, r"data\.name=test_sets:broken failed with ZeroDivisionError"),
        ("test_sets:something_else", {}, r"must return a Dataset, a MaskedDataset, a BoxedDataset or .*, got a int"),
        ("test_sets:absent", {}, r"data\.name: .test_sets:absent.: test_sets has no absent"),
        ("no_such_module:make", {}, r"cannot be imported \(ModuleNotFoundError"),
        ("cifar11", {}, r"data\.name must be one of digits, .*, or my\.module:make, got 'cifar11'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, name, options, message):
    with pytest.raises(UserError, match=message):
        load(name, root=tmp_path, options=options)


def test_a_size_that_a_set_cannot_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.image_size is no setting of data\.name=digit_scenes; leave it out"):
        load("digit_scenes", root=tmp_path, image_size=32)
