"""The learned combination of loss terms: what phi = 0 is, what cannot change, and what is refused."""

import pytest
import torch

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Term, Terms

KINDS = {"ce": ("sky", "road"), "overlap": ("all",)}
SHARES = {"ce": [0.9, 0.1], "overlap": [0.5]}
KNOTS = {"ce": [0.5, 2.0]}


def make():
    return TermLoss(KINDS, shares=SHARES, knots=KNOTS)


def terms():
    ce = torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    owner = torch.tensor([0, 0, 1])
    overlap = torch.tensor([0.4, 0.6], dtype=torch.float64)
    halves, zeros = torch.full((2,), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    return Terms(
        ce,
        None,
        {
            "overlap": Term(overlap, halves, zeros, torch.arange(2)),
            "ce": Term(ce, weights, torch.tensor([0, 1, 1]), owner),
        },
    )


def some_phi(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(make().num_weights, generator=generator, dtype=torch.float64)


def test_it_is_a_loss_family_and_begins_as_the_tasks_own_loss():
    loss = make()
    assert isinstance(loss, LossFamily) and loss.num_weights == 2 + 1 + 3
    rows = loss.losses(loss.phi.double(), terms(), None)
    torch.testing.assert_close(rows.values, torch.tensor([0.1, 0.7, 3.0, 0.4, 0.6], dtype=torch.float64))
    assert torch.equal(loss.fixed(terms()), torch.tensor([0.1, 0.7, 3.0, 0.4, 0.6], dtype=torch.float64))
    assert rows.owner.tolist() == [0, 0, 1, 0, 1]
    torch.testing.assert_close(rows.weights.sum().item(), 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_push_is_fixed_whatever_phi(seed):
    loss, phi = make(), some_phi(seed)
    weights, slopes = loss.weights(phi), loss.slopes(phi)
    mean = (0.9 * weights["ce"][0] + 0.1 * weights["ce"][1] + 0.5 * weights["overlap"][0]) / 1.5
    assert mean.item() == pytest.approx(1, abs=1e-12)
    assert slopes["ce"].mean().item() == pytest.approx(1, abs=1e-12) and (slopes["ce"] > 0).all()


def test_adding_a_number_to_all_logarithms_changes_nothing():
    loss, phi = make(), some_phi()
    moved = phi.clone()
    moved[:3] += 40.0  # e^400: more than a float holds
    for name, weights in loss.weights(phi).items():
        torch.testing.assert_close(loss.weights(moved)[name], weights)


def test_a_curve_rises_through_its_knots_by_its_slopes():
    loss, phi = make(), some_phi(3)
    a, b, c = loss.slopes(phi)["ce"]
    values = torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    expected = [-a, 0, 0.25 * a, 0.5 * a, 0.5 * a + 0.5 * b, 0.5 * a + 1.5 * b, 0.5 * a + 1.5 * b + 3 * c]
    torch.testing.assert_close(
        loss.curve(phi, "ce", values), torch.stack([torch.as_tensor(x).double() for x in expected])
    )


def test_it_can_be_differentiated_twice():
    loss, given = make(), terms()

    def total(phi, ce):
        values = {**given.values, "ce": given.values["ce"]._replace(values=ce)}
        rows = loss.losses(phi, given._replace(values=values), None)
        return (rows.weights * rows.values).sum()

    ce = torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(total, (some_phi().requires_grad_(), ce))


def test_its_numbers_have_names():
    assert list(make().report(some_phi())) == [
        *("weight_ce_sky", "weight_ce_road", "weight_overlap_all", "slope_ce_0", "slope_ce_1", "slope_ce_2"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "needs a task that gives some"),
        ((KINDS, {"mess": [1.0]}), "shares has 'mess', which is no term; terms are ce, overlap"),
        ((KINDS, {"ce": [1.0]}), "shares of ce must be 2 positive numbers"),
        ((KINDS, {"ce": [1.0, 0.0]}), "shares of ce must be 2 positive numbers"),
        ((KINDS, None, {"mess": [1.0]}), "knots has 'mess'"),
        ((KINDS, None, {"ce": [1.0, 1.0]}), "knots of ce must increase from above 0"),
        ((KINDS, None, {"ce": [0.0, 1.0]}), "knots of ce must increase from above 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    kinds, shares, knots = (*arguments, None, None)[:3]
    with pytest.raises(ValueError, match=message):
        TermLoss(kinds, shares=shares, knots=knots)


def test_other_terms_are_refused():
    with pytest.raises(ValueError, match="a loss of the terms ce, overlap was given ce"):
        make().losses(make().phi, Terms(torch.zeros(1), None, {"ce": terms().values["ce"]}), None)
