"""The published protocol to the letter, and rates inside their binomial band."""

import numpy as np
import pytest

from l2t_ray.data.noise import apply_transition, flip_to_one, flip_to_two, uniform
from l2t_ray.interfaces import UserError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PUBLISHED_PAIRS = {  # Meta-Weight-Net, load_corrupted_data.py, corruption type flip2
    "airplane": {"cat", "truck"},
    "automobile": {"deer", "ship"},
    "bird": {"automobile", "ship"},
    "cat": {"deer", "ship"},
    "deer": {"bird", "dog"},
    "dog": {"deer", "horse"},
    "frog": {"bird", "truck"},
    "horse": {"dog", "ship"},
    "ship": {"dog", "frog"},
    "truck": {"deer", "dog"},
}
LABELS = np.arange(20_000) % 10
BAND = 4.5  # standard deviations: by chance a test fails once in 100,000 seeds, and the seeds here are fixed


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_cifar10_pairs_are_the_published_ones(seed):
    _, matrix = flip_to_two(LABELS, 0.4, 10, seed)
    for label, name in enumerate(CIFAR10):
        assert {CIFAR10[i] for i in np.flatnonzero(matrix[label] == 0.2)} == PUBLISHED_PAIRS[name]
        assert matrix[label, label] == 0.6


def test_cifar100_pairs_start_as_published():
    _, matrix = flip_to_two(np.arange(100), 0.2, 100, seed=3)
    pairs = [set(np.flatnonzero(row == 0.1)) for row in matrix[:4]]
    assert pairs == [{84, 93}, {45, 70}, {57, 60}, {11, 41}]


def test_single_targets_are_drawn_as_published():
    np.random.seed(1)  # noqa: NPY002 (the published recipe, word for word)
    targets = [np.random.choice(np.delete(np.arange(10), i)) for i in range(10)]  # noqa: NPY002
    _, matrix = flip_to_one(LABELS, 0.3, 10, seed=5)
    assert [int(np.flatnonzero(row == 0.3)[0]) for row in matrix] == targets


@pytest.mark.parametrize("noise", [flip_to_one, flip_to_two, uniform])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.9])
def test_rate_is_inside_its_binomial_band(noise, rate):
    noisy, matrix = noise(LABELS, rate, 10, seed=2)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    expected = rate * 0.9 if noise is uniform else rate
    deviation = np.sqrt(expected * (1 - expected) / len(LABELS))
    assert abs((noisy != LABELS).mean() - expected) <= BAND * deviation
    for label in range(10):  # each entry of the matrix, not only their sum
        found = np.bincount(noisy[label == LABELS], minlength=10) / 2_000
        assert (abs(found - matrix[label]) <= BAND * np.sqrt(matrix[label] * (1 - matrix[label]) / 2_000)).all()


@pytest.mark.parametrize("noise", [flip_to_one, flip_to_two, uniform])
def test_seed_decides(noise):
    first, again, other = (noise(LABELS, 0.4, 10, seed)[0] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert (np.arange(20_000) % 10 == LABELS).all()  # the argument is left alone


def test_given_matrix():
    swap = np.eye(3)[[1, 2, 0]]
    assert apply_transition([0, 1, 2, 2], swap, seed=0).tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.4, float("nan")])
def test_rate_outside_is_refused(rate):
    with pytest.raises(UserError, match=r"noise\.rate must be in \[0, 1\), got"):
        flip_to_two(LABELS, rate, 10, 0)


@pytest.mark.parametrize("matrix", [np.full((2, 2), 0.6), np.array([[1.5, -0.5], [0, 1]])])
def test_matrix_that_is_none_is_refused(matrix):
    with pytest.raises(UserError, match=r"the transition matrix .* must be square"):
        apply_transition([0, 1], matrix, 0)


def test_too_few_classes_and_strange_labels_are_refused():
    with pytest.raises(UserError, match="at least 3 classes, got 2"):
        flip_to_two([0, 1], 0.2, 2, 0)
    with pytest.raises(UserError, match="labels run from 0 to 3, but the transition matrix has 3"):
        uniform([0, 3], 0.2, 3, 0)
