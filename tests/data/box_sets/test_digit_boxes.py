"""Canvases of digits: exact boxes, unequal classes, the same everywhere."""

import numpy as np
import pytest

from l2t_ray.data.box_sets import digit_boxes
from l2t_ray.data.box_sets.digit_boxes import SIZE, open_digit_boxes
from l2t_ray.interfaces import UserError


@pytest.fixture(scope="module")
def canvases():
    return open_digit_boxes(num_train=60, num_validation=20, num_test=30)


def test_canvases_have_digits_of_all_classes_rare_ones_too(canvases):
    assert len(canvases.train) == 80 and canvases.validation.tolist() == list(range(60, 80))
    counts = np.bincount(np.concatenate([boxes.labels for boxes in canvases.train.boxes]), minlength=5)
    assert (counts > 0).all() and counts[0] > 2 * counts[4] and counts.sum() > 2.5 * 80
    assert all(image.shape == (3, SIZE, SIZE) and image.dtype == np.uint8 for image in canvases.train.images)


def test_the_same_canvases_every_time_and_first_ones_of_more(canvases):
    again = open_digit_boxes(num_train=8, num_validation=0, num_test=1)
    assert again.validation is None
    for row in range(8):
        np.testing.assert_array_equal(again.train.images[row], canvases.train.images[row])
        np.testing.assert_array_equal(again.train.boxes[row].corners, canvases.train.boxes[row].corners)
    assert canvases.train.digest() != again.train.digest() != again.test.digest()


def test_boxes_hold_the_ink_and_no_row_or_column_more(monkeypatch):
    """On a grey canvas with little noise, ink is what is far from grey."""
    monkeypatch.setattr(digit_boxes, "background", lambda draw, size: np.full((size, size), 100.0))
    quiet = open_digit_boxes(num_train=20, num_validation=0, num_test=1)
    insides, edges, outsides = [], [], []
    for image, (corners, _, _) in zip(quiet.train.images, quiet.train.boxes, strict=True):
        difference, is_outside = np.abs(image[0].astype(float) - 100), np.ones((SIZE, SIZE), dtype=bool)
        for x1, y1, x2, y2 in corners.astype(int).tolist():
            inside = difference[y1:y2, x1:x2]
            insides.append(inside.max())
            edges += [inside[0].max(), inside[-1].max(), inside[:, 0].max(), inside[:, -1].max()]
            is_outside[y1:y2, x1:x2] = False
        outsides.append(difference[is_outside].mean())
    assert min(insides) > 50 and np.mean(edges) > 45 and np.mean(outsides) < 20


def test_boxes_lie_beside_one_another(canvases):
    for corners, _, _ in canvases.train.boxes:
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        overlap = (high - low).clip(min=0).prod(axis=2)
        assert (overlap[~np.eye(len(corners), dtype=bool)] == 0).all()


@pytest.mark.parametrize("key, least", [("num_train", 1), ("num_validation", 0), ("num_test", 1)])
def test_too_few_canvases_are_refused(key, least):
    with pytest.raises(UserError, match=rf"data\.options\.{key} must be at least {least}, got {least - 1}"):
        open_digit_boxes(**{key: least - 1})
