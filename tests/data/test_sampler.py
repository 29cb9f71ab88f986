import numpy as np
import pytest

from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import fixed, in_folds, redivided
from l2t_ray.interfaces import UserError

LABELS = np.arange(60) % 3


def make(policy=fixed, num_validation=20, seed=1, **changes):
    settings = {"num_steps": 3, "train_batch": 4, "val_batch": 6} | changes
    return RoundSampler(policy(LABELS, num_validation, seed), seed=seed, **settings)


def trained_on(sampler, rounds):
    return np.concatenate([rows for index in rounds for rows in sampler.plan(index).train])


def assert_same(first, second):
    assert first.epoch == second.epoch and len(first.train) == len(second.train)
    for a, b in zip([*first.train, first.val], [*second.train, second.val], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", [fixed, redivided])
@pytest.mark.parametrize("at_pass_end", ["wrap", "lose_step"])
def test_plan_depends_on_seed_and_round_alone(policy, at_pass_end):
    straight = [make(policy, at_pass_end=at_pass_end).plan(index) for index in range(12)]
    shuffled = make(policy, at_pass_end=at_pass_end)
    for index in [11, 0, 5, 3, 5, 10]:
        assert_same(shuffled.plan(index), straight[index])
    assert any((a.val != b.val).any() for a, b in zip(straight, map(make(seed=2).plan, range(12)), strict=True))


@pytest.mark.parametrize("policy", [fixed, redivided])
@pytest.mark.parametrize("at_pass_end", ["wrap", "lose_step"])
def test_no_image_teaches_and_judges_in_one_epoch(policy, at_pass_end):
    sampler = make(policy, at_pass_end=at_pass_end)
    for epoch in range(4):
        plans = [sampler.plan(epoch * 3 + within) for within in range(3)]  # 20 // 6 rounds an epoch
        assert {plan.epoch for plan in plans} == {epoch} == {sampler.epoch(epoch * 3 + 2)}
        judged = np.concatenate([plan.val for plan in plans])
        assert len(set(judged)) == 18 and set(judged) <= set(sampler.split(epoch).validation)
        taught = trained_on(sampler, range(epoch * 3, epoch * 3 + 3))
        assert set(taught) <= set(sampler.split(epoch).train)


def test_wrapped_passes_have_no_seam():
    """40 images, 12 a round: 10 rounds are exactly 3 passes, each with every image once, in another order."""
    sampler = make()
    rows = trained_on(sampler, range(10)).reshape(3, 40)
    for a_pass in rows:
        np.testing.assert_array_equal(np.sort(a_pass), sampler.split(0).train)
    assert (rows[0] != rows[1]).any() and (rows[1] != rows[2]).any()
    assert all(len(batch) == 4 for index in range(10) for batch in sampler.plan(index).train)


def test_seam_inside_a_batch():
    sampler = make(train_batch=7)
    assert [len(rows) for index in range(20) for rows in sampler.plan(index).train] == [7] * 60
    counts = np.bincount(trained_on(sampler, range(20)), minlength=60)
    assert set(counts[sampler.split(0).train]) <= {10, 11}  # 420 images of 40


def test_redivided_stream_starts_afresh_with_the_epoch():
    sampler = make(redivided)
    first, second = (trained_on(sampler, range(epoch * 3, epoch * 3 + 3)) for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 36  # no repetition: 36 of 40, both from the start of a pass
    assert set(sampler.split(0).train) != set(sampler.split(1).train)


def test_a_pass_runs_on_for_as_long_as_its_split_holds():
    """4 folds of 5: an epoch is one round of 25 images, and a turn of three a pass through the 55 and some more."""
    folds = in_folds(fixed(LABELS, 20, seed=1), LABELS, seed=1, num_folds=4, lasts=3)
    sampler = RoundSampler(folds, seed=1, num_steps=5, train_batch=5, val_batch=5)
    assert sampler.rounds_per_epoch == 1
    seen = [trained_on(sampler, range(3 * turn, 3 * turn + 3)) for turn in range(5)]
    for turn, rows in enumerate(seen):
        split = sampler.split(3 * turn)
        assert len(split.train) == 55
        np.testing.assert_array_equal(np.sort(rows[:55]), split.train)  # 75 images: a pass, and 20 of the next
    assert set(sampler.split(0).validation) == set(sampler.split(2).validation) != set(sampler.split(3).validation)
    assert not np.array_equal(seen[0], seen[4])  # the same fold judges again, in another order


def test_lost_steps_are_those_of_an_exhausted_loader():
    """The released loop, word for word: `next` fails, a new loader is made, the step is gone."""
    sampler = make(at_pass_end="lose_step", train_batch=7)
    loader, expected = iter([7, 7, 7, 7, 7, 5]), []
    for _ in range(12):
        sizes = []
        for _ in range(3):
            size = next(loader, None)
            if size is None:
                loader = iter([7, 7, 7, 7, 7, 5])
            else:
                sizes.append(size)
        expected.append(sizes)
    assert [[len(rows) for rows in sampler.plan(index).train] for index in range(12)] == expected
    assert sampler.smallest_batch == 5
    np.testing.assert_array_equal(np.sort(np.concatenate(sampler.plan(0).train + sampler.plan(1).train)),
                                  sampler.split(0).train)  # fmt: skip


def test_released_counts():
    """25,000 + 25,000 images, 15 batches of 25 against 100: 250 rounds an epoch, 3 steps lost (3,750 // 1,001)."""
    policy = redivided(np.arange(50_000) % 10, 25_000, seed=12)
    sampler = RoundSampler(
        policy, seed=12, num_steps=15, train_batch=25, val_batch=100, at_pass_end="lose_step"
    )  # fmt: skip
    assert sampler.rounds_per_epoch == 250
    lengths = [len(sampler.plan(index).train) for index in range(250)]
    assert sum(lengths) == 3_747 and sorted(set(lengths)) == [14, 15] and lengths.index(14) == 66


def test_several_passes_in_one_round():
    sampler = make(num_steps=25, train_batch=40)
    assert (np.bincount(trained_on(sampler, [0]), minlength=60)[sampler.split(0).train] == 25).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_batch": 41}, r"training\.batch_size=41 is more than the 40 images"),
        ({"val_batch": 21}, r"training\.val_batch_size=21 is more than the 20 images"),
        ({"num_steps": 0}, r"training\.num_steps must be at least 1, got 0"),
        ({"at_pass_end": "lose_step", "num_steps": 1}, "num_steps to at least 2"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
