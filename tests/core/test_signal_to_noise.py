"""The observed signal is that of hypergradients whose signal is known, and observing changes nothing."""

import io

import pytest
import torch

from l2t_ray.core.loss.adjusted import AdjustedLoss, AdjustedSpec
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.core.signal_to_noise import DECAY, LEAST_ROUNDS, Moments, SignalToNoise, cosine
from l2t_ray.core.teacher import AdamRule, LocalTeacher

GROUPS = {"quiet": 300, "loud": 200}
MEAN = torch.cat((torch.zeros(300), torch.full((200,), 0.5))).double()


def hypergradients(count, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [MEAN + noise * torch.randn(len(MEAN), generator=generator, dtype=torch.float64) for _ in range(count)]


def seen(gradients):
    moments = Moments.begin(torch.zeros_like(MEAN))
    for gradient in gradients:
        moments = moments.after(gradient)
    return moments


def test_signal_over_noise_is_that_of_one_round_by_group():
    observed = SignalToNoise(GROUPS).observed(seen(hypergradients(400)))
    assert observed["snr_loud"] == pytest.approx(0.5, rel=0.05)
    assert observed["snr_quiet"] < 0.06
    assert observed["snr"] == pytest.approx(0.5 * (200 / 500) ** 0.5, rel=0.07)


def test_it_is_already_right_after_a_few_rounds():
    """On average over many beginnings: neither moment is drawn to zero by how few there have been."""
    squares = [SignalToNoise().observed(seen(hypergradients(LEAST_ROUNDS, seed)))["snr"] ** 2 for seed in range(40)]
    assert sum(squares) / 40 == pytest.approx(0.25 * 200 / 500, rel=0.1)


def test_moments_are_means_weighed_by_age():
    gradients = hypergradients(7)
    weights = torch.tensor([DECAY**age for age in reversed(range(7))], dtype=torch.float64)
    moments = seen(gradients)
    expected = (weights[:, None] * torch.stack(gradients)).sum(0) / weights.sum()
    torch.testing.assert_close(moments.mean / (1 - DECAY**7), expected)


def test_hypergradients_that_never_change_or_vanish_have_a_number():
    assert SignalToNoise().observed(seen([MEAN] * 20))["snr"] >= 0
    assert SignalToNoise().observed(seen([0 * MEAN] * 20)) == {"snr": 0.0}
    assert cosine(MEAN, 0 * MEAN) == 0.0 and cosine(MEAN, 3 * MEAN) == pytest.approx(1)


def test_each_family_names_the_stretches_of_its_phi():
    network = DynamicLossNetwork(4, 3, pairs="softmax", channel=3, memory=1.0, init="released")
    numbers = AdjustedLoss(AdjustedSpec((0.0, 0.0), power=True, memory=1.0))
    terms = TermLoss({"ce": ("sky", "road"), "overlap": ("all",)}, knots={"ce": [0.5, 2.0]})
    assert dict(PairLoss(network).groups) == {"network": 36, "memory": 1, "channel": 9}
    assert dict(numbers.groups) == {"shifts": 2, "power": 1, "memory": 1}
    assert dict(terms.groups) == {"weight_ce": 2, "weight_overlap": 1, "slope_ce": 3}
    for family in (PairLoss(network), numbers, terms):
        assert sum(SignalToNoise.of(family, None).groups.values()) == len(family.phi)


def teacher(watch=None):
    return LocalTeacher(torch.zeros(len(MEAN)).double(), AdamRule(len(MEAN), dtype=torch.float64), watch=watch)


def taught(owner, gradients):
    answers = []
    for gradient in gradients:
        answers.append(owner.propose(owner.read().version, gradient, 0.5))
        owner.learn(answers[-1].version - 1)
    return answers


def test_a_teacher_says_so_after_some_rounds():
    answers = taught(teacher(SignalToNoise(GROUPS, clip=5.0)), hypergradients(LEAST_ROUNDS + 1))
    assert all(answer.observed == {} for answer in answers[: LEAST_ROUNDS - 1])
    assert answers[-1].observed.keys() == {"snr", "snr_quiet", "snr_loud", "hypergradient_cosine"}
    short = [5 * gradient / gradient.norm() for gradient in hypergradients(LEAST_ROUNDS + 1)]
    assert answers[-1].observed["snr"] == pytest.approx(SignalToNoise().observed(seen(short))["snr"])
    assert answers[-1].observed["hypergradient_cosine"] == pytest.approx(cosine(short[-1], short[-2]))


def test_a_teacher_goes_on_bit_for_bit_and_from_before_there_were_moments():
    gradients = hypergradients(24)
    whole = taught(teacher(), gradients)
    first = teacher()
    taught(first, gradients[:12])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = teacher()
    again.load_state_dict(state)
    rest = taught(again, gradients[12:])
    assert [answer.observed for answer in rest] == [answer.observed for answer in whole[12:]]
    del state["moments"]
    old = teacher()
    old.load_state_dict(state)
    later = taught(old, gradients[12:])
    assert torch.equal(later[-1].phi, whole[-1].phi) and later[0].observed == {} and "snr" in later[-1].observed
