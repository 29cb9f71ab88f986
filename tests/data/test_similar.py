"""Classes that look alike."""

import numpy as np
import pytest

from l2t_ray.data.noise import flip_to_similar, realised
from l2t_ray.data.similar import CIFAR100_SUPERCLASSES, similar_classes


@pytest.mark.parametrize("name, num_classes", [("cifar10", 10), ("cifar100", 100)])
def test_each_class_has_two_others(name, num_classes):
    similar = similar_classes(name)
    assert similar.shape == (num_classes, 2)
    for label, pair in enumerate(similar):
        assert len({label, *pair}) == 3 and set(pair) <= set(range(num_classes))
    assert similar_classes("digits") is None


def test_cifar100_stays_within_superclasses():
    superclasses = np.array(CIFAR100_SUPERCLASSES)
    assert (np.bincount(superclasses) == 5).all()
    assert (superclasses[similar_classes("cifar100")] == superclasses[:, None]).all()


def test_realised_matrix_is_near_the_drawn_one():
    labels = np.arange(30_000) % 10
    observed, matrix = flip_to_similar(labels, 0.4, similar_classes("cifar10"), seed=0)
    assert matrix[3, 5] == matrix[3, 2] == 0.2 and matrix[3, 3] == 0.6
    np.testing.assert_allclose(realised(labels, observed, 10), matrix, atol=4 * np.sqrt(0.24 / 3000))
    assert realised(np.array([0]), np.array([1]), 3).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.data
def test_superclasses_are_the_sets_own(real_root):
    from l2t_ray.data.catalog import load

    fine, coarse = (load(name, root=real_root, verify=False) for name in ("cifar100", "cifar100_coarse"))
    assert (np.array(CIFAR100_SUPERCLASSES)[fine.train.labels] == coarse.train.labels).all()
    assert coarse.num_classes == 20 and coarse.train.class_names[0] == "aquatic_mammals"
