"""The learned combination of loss terms: what phi = 0 is, what cannot change, and what is refused."""

import math

import pytest
import torch

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Batch, Term, Terms, UserError
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

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


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_balanced_start_weighs_kinds_by_how_rare_they_are_and_leaves_each_terms_push(balance):
    loss = TermLoss(KINDS, shares=SHARES, knots=KNOTS, balance=balance)
    weights = loss.weights(loss.phi.double())
    assert (weights["ce"][1] / weights["ce"][0]).item() == pytest.approx(9**balance, rel=1e-5)
    assert (0.9 * weights["ce"][0] + 0.1 * weights["ce"][1]).item() == pytest.approx(1, rel=1e-5)
    assert weights["overlap"].item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(TermLoss.of(loss.spec).phi, loss.phi)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_push_is_fixed_whatever_phi(seed):
    loss, phi = make(), some_phi(seed)
    weights, slopes = loss.weights(phi), loss.slopes(phi)  # no spread is given: each piece has a third of each kind
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


@pytest.mark.parametrize("balance", [-0.1, 1.1, math.nan])
def test_a_balance_beyond_none_and_all_is_refused(balance):
    with pytest.raises(ValueError, match="balance must be 0 to 1"):
        TermLoss(KINDS, balance=balance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "needs a task that gives some"),
        ((KINDS, {"mess": [1.0]}), "shares has 'mess', which is no term; terms are ce, overlap"),
        ((KINDS, {"ce": [1.0]}), "shares of ce must be 2 positive numbers"),
        ((KINDS, {"ce": [1.0, 0.0]}), "shares of ce must be 2 positive numbers"),
        ((KINDS, {"ce": [1.0, math.inf]}), "shares of ce must be 2 positive numbers"),
        ((KINDS, {"ce": [1.0, math.nan]}), "shares of ce must be 2 positive numbers"),
        (({"ce": ()},), "kinds of ce must be one name or more, each once"),
        (({"ce": ("sky", "sky")},), "kinds of ce must be one name or more, each once"),
        ((KINDS, None, {"ce": [0.5, math.inf]}), "knots of ce must increase from above 0"),
        ((KINDS, None, {"ce": [0.5, math.nan]}), "knots of ce must increase from above 0"),
        ((KINDS, None, {"mess": [1.0]}), "knots has 'mess'"),
        ((KINDS, None, KNOTS, {"mess": [[1.0]]}), "spread has 'mess'"),
        ((KINDS, None, KNOTS, {"ce": [[1.0, 1.0, 1.0]]}), "spread of ce must have 2 rows, its kinds, of 3 pieces"),
        ((KINDS, None, KNOTS, {"ce": [[1.0, 1.0], [1.0, 1.0]]}), "spread of ce must have 2 rows, its kinds, of 3"),
        ((KINDS, None, None, {"overlap": [[0.0]]}), "spread of overlap must be positive numbers"),
        ((KINDS, None, {"ce": [1.0, 1.0]}), "knots of ce must increase from above 0"),
        ((KINDS, None, {"ce": [0.0, 1.0]}), "knots of ce must increase from above 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    kinds, shares, knots, spread = (*arguments, None, None, None)[:4]
    with pytest.raises(ValueError, match=message):
        TermLoss(kinds, shares=shares, knots=knots, spread=spread)


def test_other_terms_are_refused():
    with pytest.raises(ValueError, match="a loss of the terms ce, overlap was given ce"):
        make().losses(make().phi, Terms(torch.zeros(1), None, {"ce": terms().values["ce"]}), None)


# -- for a task


class TwoTerms(Segmentation):
    kinds = KINDS

    def __init__(self):
        pass


def sample(seed, num_rows=400):
    """Rows of kinds that are not equally frequent, and the larger in value, the rarer."""
    g = torch.Generator().manual_seed(seed)
    kinds = (torch.arange(num_rows) % 10 == 0).long()
    values = torch.rand(num_rows, generator=g).double().square() * (3 + 2 * kinds)
    even = torch.full((num_rows,), 1 / num_rows, dtype=torch.float64)
    overlap, owner = torch.rand(4, generator=g).double(), torch.arange(4)
    return Terms(
        values,
        values={
            "ce": Term(values, even, kinds, torch.arange(num_rows)),
            "overlap": Term(overlap, torch.full((4,), 0.125, dtype=torch.float64), torch.zeros_like(owner), owner),
        },
    )


def push_of(loss, phi, terms):
    """What is pushed in all: the derivative of the whole loss in a value, summed over the rows of every term."""
    values = {name: term.values.clone().requires_grad_() for name, term in terms.values.items()}
    given = {name: term._replace(values=values[name]) for name, term in terms.values.items()}
    rows = loss.losses(phi, terms._replace(values=given), None)
    return sum(grad.sum() for grad in torch.autograd.grad((rows.weights * rows.values).sum(), list(values.values())))


@pytest.mark.parametrize("num_pieces", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_push_on_what_it_was_made_for_stays_that_of_the_tasks_own_loss(seed, num_pieces):
    given = [sample(seed), sample(seed + 10)]
    loss = TermLoss.for_task(TwoTerms(), given, num_pieces=num_pieces)
    phi = 0.2 * torch.randn(loss.num_weights, generator=torch.Generator().manual_seed(seed)).double()
    assert max(loss.weights(phi)["ce"]) > 1.5 * min(loss.weights(phi)["ce"])  # it does say something
    assert all(max(slopes) > 1.5 * min(slopes) for slopes in loss.slopes(phi).values())
    assert sum(push_of(loss, phi, terms).item() for terms in given) == pytest.approx(2 * 1.5, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_never_turns_a_larger_value_into_a_smaller_loss(seed):
    loss = make()
    phi = 3 * some_phi(seed)
    values = torch.linspace(-1, 9, 200, dtype=torch.float64)
    assert (loss.curve(phi, "ce", values).diff() > 0).all()


def test_without_a_sample_terms_count_alike_and_so_do_kinds():
    loss = TermLoss.for_task(Segmentation(["sky", "road", "tree"]))
    assert loss.kinds == {"cross_entropy": ("sky", "road", "tree"), "jaccard": ("all",)} and not loss.knots
    assert [sum(own) for own in loss.spec.shares.values()] == pytest.approx([1, 1])
    assert len(set(loss.spec.shares["cross_entropy"])) == 1


def test_shares_are_what_rows_count_and_a_kind_without_any_keeps_a_little():
    first, second = sample(0), sample(1)
    shares = TermLoss.for_task(TwoTerms(), [first, second]).spec.shares
    assert shares["ce"] == pytest.approx((0.9, 0.1)) and shares["overlap"] == pytest.approx((0.5,))
    alone = first.values["ce"]._replace(kinds=torch.zeros(400, dtype=torch.long))
    shares = TermLoss.for_task(TwoTerms(), [first._replace(values={**first.values, "ce": alone})]).spec.shares
    assert shares["ce"] == pytest.approx((1, 0.0005))


def test_a_sample_in_which_no_row_counts_says_as_much_as_none():
    task = Segmentation(["sky", "road"], loss_terms=("cross_entropy", "boundary", "jaccard"))
    batch = Batch(torch.zeros(1, 1), torch.full((1, 2, 2), 255), torch.ones(1), torch.arange(1))
    loss = TermLoss.for_task(task, [task.terms(torch.zeros(1, 2, 2, 2), batch)], num_pieces=2, balance=0.5)
    assert loss.spec.shares == TermLoss.for_task(task).spec.shares
    assert loss.phi.isfinite().all()


def test_knots_are_distinct_quantiles_above_zero():
    given = sample(0)
    constant = given.values["overlap"]._replace(values=torch.tensor([0.0, 0.0, 0.6, 0.8], dtype=torch.float64))
    loss = TermLoss.for_task(TwoTerms(), [given._replace(values={**given.values, "overlap": constant})], num_pieces=4)
    values = given.values["ce"].values
    assert [round((values < knot).double().mean().item(), 2) for knot in loss.knots["ce"]] == [0.25, 0.5, 0.75]
    assert loss.knots["overlap"] == pytest.approx((0.3, 0.7))


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_a_tail_has_a_slope_of_its_own_beyond_nearly_all_values(num_pieces):
    given = sample(0)
    loss = TermLoss.for_task(TwoTerms(), [given], num_pieces=num_pieces, has_tail=True)
    values = given.values["ce"].values
    assert len(loss.knots["ce"]) == num_pieces and (values > loss.knots["ce"][-1]).double().mean() == 0.01
    phi = loss.phi
    phi[loss.spec.sizes[0] + loss.spec.sizes[1] + num_pieces] = -0.3  # of the tail of the first term
    slopes = loss.slopes(phi)["ce"]
    assert slopes[-1] < 0.06 and slopes[:-1].allclose(torch.ones(num_pieces), atol=0.02)


def test_a_task_without_terms_is_refused_and_so_are_curves_without_values():
    with pytest.raises(
        UserError, match="needs a task that has some, and classification has none; take the loss network"
    ):
        TermLoss.for_task(Classification())
    with pytest.raises(UserError, match="curves bend at quantiles of the terms' values; give a sample"):
        TermLoss.for_task(TwoTerms(), num_pieces=3)
    with pytest.raises(UserError, match="give a sample"):
        TermLoss.for_task(TwoTerms(), has_tail=True)
    with pytest.raises(UserError, match=r"a balance of 0\.5 needs to know which kinds are rare; give a sample"):
        TermLoss.for_task(TwoTerms(), balance=0.5)


# -- in a training loop of one's own


def test_the_loss_is_the_weighed_sum_with_what_is_not_learned():
    loss, phi = make(), some_phi()
    rows = loss.losses(phi, terms(), None)
    total = (rows.weights * rows.values).sum()
    assert loss.loss(phi, terms()) == total
    assert loss.loss(phi, terms()._replace(rest=torch.tensor(2.0).double())) == total + 2
    given = {name: (term.values, term.kinds) for name, term in terms().values.items()}
    torch.testing.assert_close(loss.loss(phi, given), total)
    torch.testing.assert_close(loss.loss(phi, {**given, "overlap": given["overlap"][0]}), total)


def test_a_student_in_another_precision_is_judged_in_the_finer_one():
    loss, phi = make(), some_phi()
    single = loss.losses(phi.float(), terms(), None)
    assert single.values.dtype == torch.float64
    torch.testing.assert_close(single.values, loss.losses(phi, terms(), None).values, rtol=1e-5, atol=1e-6)


def test_kinds_that_it_does_not_know_are_refused():
    loss, phi = make(), some_phi()
    ce, overlap = torch.rand(3).double(), torch.rand(2).double()
    with pytest.raises(ValueError, match=r"kinds of ce must be below 2 \(sky, road\), got 0 to 2"):
        loss.loss(phi, {"ce": (ce, torch.tensor([0, 2, 1])), "overlap": overlap})
    with pytest.raises(ValueError, match=r"ce has the kinds sky, road; give \(values, kinds\)"):
        loss.loss(phi, {"ce": ce, "overlap": overlap})
    with pytest.raises(ValueError, match="a loss of the terms ce, overlap was given overlap"):
        loss.loss(phi, {"overlap": overlap})
    with pytest.raises(ValueError, match="was given none"):
        loss.loss(phi, {})
