"""Data sets by name, and a user's own by its import path."""

import inspect

import numpy as np
import pytest

from l2t_ray.data import catalog
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import load
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.sets import DATA_SETS, is_own
from l2t_ray.interfaces import UserError


def make(root, num_images: int, shade: int = 3):
    images = np.full((num_images, 1, 4, 4), shade, dtype=np.uint8)
    part = ImageSet(images, np.arange(num_images) % 2, np.arange(num_images), ("a", "b"), {"root": str(root)})
    return Dataset("own", part, part, (0.5,), (0.5,))


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
        ("test_sets:broken", {}, r"data\.name=test_sets:broken failed with ZeroDivisionError"),
        ("test_sets:something_else", {}, r"must return a Dataset or a MaskedDataset .*, got a int"),
        ("test_sets:absent", {}, r"data\.name=test_sets:absent cannot be imported \(AttributeError"),
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


def test_import_paths_are_told_from_names():
    assert is_own("a.b:make") and is_own("m:make")
    assert not any(map(is_own, ("digits", "a.b", ":make", "a:", "a b:make", "a:b:c", "../a:make")))
