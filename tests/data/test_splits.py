import numpy as np
import pytest

from l2t_ray.data.splits import fixed, fixed_split, given, in_folds, redivided, redivided_split
from l2t_ray.interfaces import UserError

LABELS = np.random.default_rng(0).integers(0, 10, 2_000)


def assert_disjoint(split):
    assert not set(split.train) & set(split.validation)
    for part in split:
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("num_train", [None, 503])
def test_fixed_split_is_disjoint_and_balanced(num_train):
    split = fixed_split(LABELS, 105, seed=3, num_train=num_train)
    assert_disjoint(split)
    assert set(np.bincount(LABELS[split.validation])) == {10, 11}
    if num_train is None:
        assert len(split.train) == 1_895
    else:
        assert set(np.bincount(LABELS[split.train])) == {50, 51}


def test_balance_takes_what_small_classes_have():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    split = fixed_split(labels, 43, seed=0)
    assert np.bincount(labels[split.validation]).tolist() == [20, 3, 20]


def test_fixed_split_by_seed():
    first, again, other = (fixed_split(LABELS, 100, seed=seed).validation for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_redivided_split_by_epoch():
    first, again, other = (redivided_split(1_000, 500, seed=1, epoch=epoch) for epoch in (1, 1, 2))
    assert_disjoint(first)
    assert len(first.train) == len(first.validation) == 500
    assert first.validation.tobytes() == again.validation.tobytes() != other.validation.tobytes()


@pytest.mark.parametrize("num_train", [None, 500])
def test_given_validation_is_kept_apart(num_train):
    validation = np.arange(1_900, 2_000)
    split = given(LABELS, validation, seed=0, num_train=num_train).at(3)
    assert_disjoint(split)
    assert split.validation.tolist() == validation.tolist() and len(split.train) == (num_train or 1_900)
    with pytest.raises(UserError, match=r"no validation image has the class"):
        given(LABELS, np.flatnonzero(LABELS != 4), seed=0)


def test_redivided_pool_never_changes():
    policy = redivided(LABELS, 100, seed=0, num_train=200)
    pools = [np.sort(np.concatenate(policy.at(epoch))) for epoch in range(3)]
    assert all((pool == pools[0]).all() for pool in pools)
    assert (np.bincount(LABELS[pools[0]]) == 30).all()
    assert policy.lasts == 1 and fixed(LABELS, 100, seed=0).lasts is None


@pytest.mark.parametrize("policy", [fixed, redivided])
@pytest.mark.parametrize(
    "num_validation, num_train, message",
    [
        (0, None, r"data\.num_validation must be at least 1, got 0"),
        (5, None, r"num_validation=5 leaves a class .* 9 \(truck\); use at least 10"),
        (2_000, None, r"num_validation=2000 and data\.num_train=the rest need more than the 2000"),
        (100, 1_901, r"num_validation=100 and data\.num_train=1901 need more than the 2000"),
        (100, 0, r"data\.num_train must be at least 1, got 0"),
    ],
)
def test_impossible_counts(policy, num_validation, num_train, message):
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with pytest.raises(UserError, match=message):
        policy(LABELS, num_validation, 0, num_train=num_train, class_names=names)


def test_class_without_images_is_named():
    with pytest.raises(UserError, match=r"no training image has the class 1 \(b\)"):
        fixed(np.array([0, 2, 0, 2, 2, 0]), 3, 0, class_names="abc")


def test_redivided_split_needs_both_parts():
    with pytest.raises(UserError, match="between 1 and 9"):
        redivided_split(10, 10, 0, 0)


@pytest.mark.parametrize("num_folds", [2, 5])
def test_folds_take_turns_in_judging_and_teaching(num_folds):
    policy = fixed(LABELS, 100, seed=0, num_train=200)
    folds = in_folds(policy, LABELS, seed=0, num_folds=num_folds)
    whole, turns = policy.at(0), [folds.at(epoch) for epoch in range(num_folds)]
    for split in turns:
        assert not np.intersect1d(split.train, split.validation).size
        np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.sort(np.concatenate(whole)))
        assert np.isin(whole.train, split.train).all()
        assert (np.bincount(LABELS[split.validation], minlength=10) == 10 // num_folds).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([split.validation for split in turns])), whole.validation)
    np.testing.assert_array_equal(folds.at(num_folds).validation, turns[0].validation)
    assert folds.lasts == 1
    other = in_folds(policy, LABELS, seed=1, num_folds=num_folds).at(0)
    assert not np.array_equal(other.validation, turns[0].validation)


def test_folds_judge_with_as_many_images_each():
    folds = in_folds(fixed(LABELS, 100, seed=0, num_train=200), LABELS, seed=0, num_folds=3)
    assert [len(folds.at(epoch).validation) for epoch in range(3)] == [33, 33, 33]
    assert sorted(len(folds.at(epoch).train) for epoch in range(3)) == [266, 267, 267]  # one image rests in its turn


def test_a_fold_judges_for_as_long_as_it_is_said_to():
    policy = fixed(LABELS, 100, seed=0, num_train=200)
    each, thrice = (in_folds(policy, LABELS, seed=0, num_folds=4, lasts=lasts) for lasts in (1, 3))
    assert thrice.lasts == 3
    for epoch in range(14):
        for part, expected in zip(thrice.at(epoch), each.at(epoch // 3), strict=True):
            np.testing.assert_array_equal(part, expected)
