"""Scenes of digits: exact, unequal, the same everywhere, and of disjoint scans."""

import numpy as np
import pytest

from l2t_ray.data import pasted_digits
from l2t_ray.data.mask_sets import digit_scenes
from l2t_ray.data.mask_sets.digit_scenes import open_digit_scenes


@pytest.fixture(scope="module")
def scenes():
    return open_digit_scenes(num_train=60, num_validation=20, num_test=30)


def test_scenes_have_digits_of_all_classes_rare_ones_too(scenes):
    assert scenes.num_classes == 11 and scenes.train.class_names[0] == "background"
    assert len(scenes.train) == 80 and scenes.validation.tolist() == list(range(60, 80)) and len(scenes.test) == 30
    counts = np.bincount(np.concatenate([mask.ravel() for _, mask in scenes.train.pairs]), minlength=11)
    assert counts[0] / counts.sum() > 0.7 and (counts[1:] > 0).all() and counts[1] > 2 * counts[10]
    assert all(image.shape == (1, 64, 64) and image.dtype == np.uint8 for image, _ in scenes.train.pairs)


def test_the_same_scenes_every_time_and_first_ones_of_more(scenes):
    again = open_digit_scenes(num_train=8, num_validation=0, num_test=1)
    assert again.validation is None
    for (image, mask), (other, same) in zip(again.train.pairs, scenes.train.pairs, strict=False):
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(mask, same)
    assert scenes.train.digest() != again.train.digest() != again.test.digest()


def test_masks_are_where_the_ink_is(monkeypatch):
    """Without background and noise, what is not background is ink."""
    monkeypatch.setattr(digit_scenes, "background", lambda draw, size, **quiet: np.full((64, 64), 100.0))
    quiet = open_digit_scenes(num_train=20, num_validation=0, num_test=1)
    on, off = [], []
    for image, mask in quiet.train.pairs:
        difference = np.abs(image[0].astype(float) - 100)
        on.append(difference[mask > 0])
        off.append(difference[mask == 0])
    assert np.median(np.concatenate(on)) > 45 > 2 * np.median(np.concatenate(off))


def test_no_scan_is_in_two_parts(monkeypatch):
    seen = []

    def scene(by_class, draw):
        seen.append({scan.tobytes() for scans in by_class for scan in scans})
        return np.zeros((1, 64, 64), dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)

    monkeypatch.setattr(digit_scenes, "_scene", scene)
    scans = np.arange(1797, dtype=np.uint64).view(np.uint8).reshape(1797, 1, 8)
    labels = np.arange(1797) % 10
    monkeypatch.setattr(pasted_digits, "digit_scans", lambda: (np.broadcast_to(scans, (1797, 8, 8)).copy(), labels))
    open_digit_scenes(num_train=1, num_validation=1, num_test=1)
    train, validation, test = seen
    assert not (train & validation or train & test or validation & test)
    assert len(train | validation | test) == 1797
