"""Noise in boxes: as many as asked for, of the kind asked for, and nothing else."""

import numpy as np
import pytest

from l2t_ray.data.box_noise import noisy_boxes
from l2t_ray.data.boxed_sets import BoxedSet, Boxes
from l2t_ray.interfaces import UserError


def made(names="abcd", crowd=False):
    draw = np.random.default_rng(0)
    boxes = []
    for _ in range(200):
        low = draw.uniform(0, 60, (10, 2))
        boxes.append(Boxes.of(np.concatenate((low, low + draw.uniform(2, 30, (10, 2))), axis=1),
                              draw.integers(0, len(names), 10), [crowd] * 10))  # fmt: skip
    return BoxedSet.of([np.zeros((3, 100, 100), dtype=np.uint8)] * 200, boxes, names)


SET = made()
CLEAN = np.concatenate([boxes.corners for boxes in SET.boxes])
LABELS = np.concatenate([boxes.labels for boxes in SET.boxes])


def noisy(kind, rate=0.3, strength=0.4, seed=1, which=SET):
    boxes, is_hit = noisy_boxes(which, kind, rate, strength=strength, seed=seed)
    return (
        np.concatenate([each.corners for each in boxes]),
        np.concatenate([each.labels for each in boxes]),
        np.concatenate(is_hit),
    )


@pytest.mark.parametrize("kind", ["shifted", "scaled", "mislabelled", "dropped", "mixed"])
def test_as_many_boxes_are_hit_as_asked_for_and_the_others_stay_to_the_bit(kind):
    corners, labels, is_hit = noisy(kind)
    assert abs(is_hit.mean() - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    if kind == "dropped":
        np.testing.assert_array_equal(corners, CLEAN[~is_hit])
    elif kind != "mixed":
        is_other = (corners != CLEAN).any(axis=1) | (labels != LABELS)
        np.testing.assert_array_equal(is_other, is_hit)
        assert (labels == LABELS).all() == (kind != "mislabelled") and (corners == CLEAN).all() == (
            kind == "mislabelled"
        )
    else:
        clean = {tuple(corner): label for corner, label in zip(CLEAN.tolist(), LABELS.tolist(), strict=True)}
        stayed = [clean.get(tuple(corner)) for corner in corners.tolist()]
        kinds = (
            sum(label is None for label in stayed),
            sum(was is not None and was != now for was, now in zip(stayed, labels.tolist(), strict=True)),
            2000 - len(corners),
        )
        for count, share in zip(kinds, (0.15, 0.075, 0.075), strict=True):
            assert abs(count - 2000 * share) < 4 * (2000 * share) ** 0.5


def test_shifts_move_and_scales_resize_by_up_to_their_strength_within_the_image():
    centres, sides = (CLEAN[:, :2] + CLEAN[:, 2:]) / 2, CLEAN[:, 2:] - CLEAN[:, :2]
    corners, _, is_hit = noisy("shifted")
    is_inside = is_hit & ((corners > 0) & (corners < 100)).all(axis=1)
    moved = (((corners[:, :2] + corners[:, 2:]) / 2 - centres) / sides)[is_inside]
    assert 0.37 < np.abs(moved).max() <= 0.4 and abs(moved.mean()) < 0.04
    np.testing.assert_allclose((corners[:, 2:] - corners[:, :2])[is_inside], sides[is_inside])
    corners, _, is_hit = noisy("scaled")
    is_inside = is_hit & ((corners > 0) & (corners < 100)).all(axis=1)
    grown = ((corners[:, 2:] - corners[:, :2]) / sides)[is_inside]
    assert 0.6 <= grown.min() < 0.63 and 1.37 < grown.max() <= 1.4
    assert corners.min() >= 0 and corners.max() <= 100


def test_wrong_classes_are_all_others_alike():
    _, labels, is_hit = noisy("mislabelled", rate=0.9)
    counts = np.bincount(((labels - LABELS) % 4)[is_hit], minlength=4)
    assert counts[0] == 0 and (np.abs(counts[1:] - counts.sum() / 3) < 4 * (counts.sum() / 3) ** 0.5).all()


def test_draws_are_counted():
    few, more = noisy("shifted", rate=0.2)[2], noisy("dropped", rate=0.5)[2]
    assert (more | ~few).all() and more.sum() > few.sum()
    np.testing.assert_array_equal(noisy("mixed")[0], noisy("mixed")[0])
    assert not np.array_equal(noisy("shifted", seed=2)[2], noisy("shifted", seed=1)[2])


def test_crowds_are_left_alone():
    _, _, is_hit = noisy("dropped", which=made(crowd=True), rate=0.9)
    assert not is_hit.any()


@pytest.mark.parametrize(
    "names, kind, rate, strength, message",
    [
        ("abcd", "shifted", 1.0, 0.4, r"data\.noise\.rate must be in \[0, 1\), got 1\.0"),
        ("abcd", "shifted", 0.2, 1.0, r"data\.noise\.strength must be in \(0, 1\), got 1\.0"),
        ("a", "mixed", 0.2, 0.4, r"data\.noise\.kind=mixed needs at least 2 classes"),
    ],
)
def test_what_cannot_be_is_refused(names, kind, rate, strength, message):
    with pytest.raises(UserError, match=message):
        noisy_boxes(made(names), kind, rate, strength=strength, seed=0)
