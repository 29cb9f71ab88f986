import numpy as np
import pytest

from l2t_ray.data.imbalance import kept_counts, shares, thinned, with_rare
from l2t_ray.data.splits import fixed, in_folds, mixed
from l2t_ray.interfaces import UserError

NAMES = tuple("abcdefghij")
LABELS = np.repeat(np.arange(10), 210)
POLICY = fixed(LABELS, 100, seed=0)


def counts_of(policy, part="train"):
    return np.bincount(LABELS[getattr(policy.at(0), part)], minlength=10).tolist()


def test_exponential_counts_are_meta_weight_nets():
    """As its released code has them for CIFAR-10 with factor 100: `int(5000 * 0.01 ** (c / 9))`."""
    kept = kept_counts("exponential", 100.0, np.full(10, 5_000))
    assert kept.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert kept_counts("exponential", 1.0, np.full(10, 7)).tolist() == [7] * 10


def test_a_step_is_between_two_halves_of_the_classes():
    assert kept_counts("step", 10.0, np.full(5, 100)).tolist() == [100, 100, 10, 10, 10]
    assert shares("step", 4.0, 2).tolist() == [1, 0.25]


def test_the_largest_class_is_as_large_as_all_classes_allow():
    """Class 1 has too few images for 200 in class 0: the proportions are kept, and with them the factor."""
    assert kept_counts("step", 4.0, np.array([200, 40])).tolist() == [160, 40]


def test_only_the_training_part_is_thinned_out():
    thin = thinned(POLICY, LABELS, "exponential", 100.0, 0, NAMES)
    assert counts_of(thin) == [200, 119, 71, 43, 25, 15, 9, 5, 3, 2]
    assert set(thin.at(0).train) < set(POLICY.at(0).train) and (np.diff(thin.at(0).train) > 0).all()
    assert (thin.at(0).validation == POLICY.at(0).validation).all() and thin.lasts is None
    assert counts_of(mixed(thin)) == [n + 10 for n in counts_of(thin)]
    assert counts_of(in_folds(thin, LABELS, 0, 2), "validation") == [5] * 10


def test_which_images_are_kept_depends_on_the_seed_and_less_are_some_of_more():
    few, many, other = (
        set(thinned(POLICY, LABELS, "exponential", factor, seed, NAMES).at(0).train)
        for factor, seed in ((50.0, 0), (10.0, 0), (10.0, 1))
    )
    again = set(thinned(POLICY, LABELS, "exponential", 10.0, 0, NAMES).at(3).train)
    assert few < many == again != other


def test_a_class_without_an_image_is_named():
    with pytest.raises(UserError, match=r"factor=1000 leaves class 7 \(h\) without a training image.* has 200; lower"):
        thinned(POLICY, LABELS, "exponential", 1000.0, 0, NAMES)
    with pytest.raises(UserError, match=r"class 10 \(k\) has no training image to begin with"):
        thinned(POLICY, LABELS, "step", 2.0, 0, (*NAMES, "k"))


def test_of_a_rare_class_one_image_in_so_many_is_kept_and_all_others_stay():
    has_class = LABELS == 3
    rare, rarer = (with_rare(POLICY, has_class, factor, 0, 3, "d") for factor in (10.0, 20.0))
    assert counts_of(rare) == [200] * 3 + [20] + [200] * 6 and counts_of(rarer)[3] == 10
    assert set(rarer.at(0).train) < set(rare.at(5).train) and (np.diff(rare.at(0).train) > 0).all()
    assert (rare.at(0).validation == POLICY.at(0).validation).all()
    assert set(with_rare(POLICY, has_class, 10.0, 1, 3, "d").at(0).train) != set(rare.at(0).train)


def test_a_rare_class_without_an_image_is_named():
    with pytest.raises(UserError, match=r"factor=300 leaves none of the 200 training images that have d; lower it"):
        with_rare(POLICY, LABELS == 3, 300.0, 0, 3, "d")
