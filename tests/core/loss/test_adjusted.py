"""Adjusted cross-entropy against plain formulas, its derivatives, and its push."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from l2t_ray.bilevel.engines import ENGINES
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.core.loss.adjusted import AdjustedLoss, AdjustedSpec
from l2t_ray.core.loss.adjustments import REPORTED_CLASSES, powered
from l2t_ray.core.loss.channel import FLOOR
from l2t_ray.core.loss.family import Bars, KeptFamily
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.interfaces import Batch
from l2t_ray.methods.learned_loss import ShiftedByNoise
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification

C = 4
LOGITS = 2 * torch.randn(7, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 2, 2])
MEMORY = LOGITS.flip(0).softmax(1) / 2
START = (0.5, 0.0, -0.25, 0.75)
EVERYTHING = AdjustedSpec(START, smoothing=True, power=True, temperature=True, channel=C, memory=2.0)
ALONE = {
    "shifts": AdjustedSpec(START),
    "smoothing": AdjustedSpec(smoothing=True),
    "power": AdjustedSpec(power=True),
    "temperature": AdjustedSpec(temperature=True),
    "everything": EVERYTHING,
}


def numbers(spec, seed=1):
    """Numbers within all bounds, and off them."""
    draw = torch.rand(spec.num_weights, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.01 + 0.02 * draw


def rows(spec, phi, logits=LOGITS, labels=LABELS):
    return AdjustedLoss(spec).row_losses(phi, logits, labels, MEMORY if spec.memory else None)


@pytest.mark.parametrize("kind", ["smoothing", "power", "temperature"])
def test_at_zero_it_is_cross_entropy(kind):
    loss = AdjustedLoss(ALONE[kind])
    torch.testing.assert_close(
        loss.row_losses(loss.phi.double(), LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none")
    )


def test_with_shifts_it_begins_as_balanced_softmax():
    counts = torch.tensor([50.0, 20.0, 9.0, 1.0], dtype=torch.float64)
    spec = AdjustedSpec(tuple((counts / counts.sum()).log().tolist()))
    p = counts * LOGITS.exp() / (counts * LOGITS.exp()).sum(1, keepdim=True)
    torch.testing.assert_close(
        rows(spec, torch.zeros(C, dtype=torch.float64)), -p.gather(1, LABELS[:, None])[:, 0].log()
    )


def test_each_number_is_the_formula_that_it_is_named_after():
    e, q, t = 0.2, 0.7, 1.5
    log_p = LOGITS.log_softmax(1)
    own = log_p.gather(1, LABELS[:, None])[:, 0]
    entry = torch.tensor([0.1], dtype=torch.float64)
    smoothed = F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=e)
    left = 1 - e * (1 - 1 / C)
    torch.testing.assert_close(rows(ALONE["smoothing"], e * entry), smoothed / (left**2 + (1 - left) ** 2))
    expected = (1 - own.exp() ** q) / q * (1 + q) * (2 + q) / 2
    torch.testing.assert_close(rows(ALONE["power"], q * entry), expected)
    cooled = t * F.cross_entropy(LOGITS / t, LABELS, reduction="none")
    torch.testing.assert_close(rows(ALONE["temperature"], (t - 1) * entry), cooled)


def test_the_parts_compose_in_the_order_that_the_page_says():
    phi = numbers(EVERYTHING)
    own = EVERYTHING.parts.split(phi)
    e, q, t = 10 * own.smoothing, 10 * own.power, 1 + 10 * own.temperature
    shifts = torch.tensor(START).double() + 10 * own.shifts
    channel = ((torch.eye(C) + FLOOR).log() + 10 * own.channel.view(C, C)).softmax(1)
    seen = (LOGITS / t + shifts).softmax(1) @ channel
    each = (1 - seen**q) / q
    own_losses, left = each.gather(1, LABELS[:, None])[:, 0], 1 - e * (1 - 1 / C)
    whole = ((1 - e) * own_losses + e * each.mean(1)) * t * (1 + q) * (2 + q) / 2 / (left**2 + (1 - left) ** 2)
    weight = 4 * (10 * own.memory).sigmoid()
    expected = whole + weight * (1 - (LOGITS.softmax(1) * MEMORY).sum(1)).log()
    torch.testing.assert_close(rows(EVERYTHING, phi), expected)


@pytest.mark.parametrize("kind", ALONE)
def test_derivatives_are_exact(kind):
    spec = ALONE[kind]
    inputs = (numbers(spec).requires_grad_(), LOGITS[:3].clone().requires_grad_())

    def loss(phi, logits):
        return AdjustedLoss(spec).row_losses(phi, logits, LABELS[:3], MEMORY[:3] if spec.memory else None)

    assert gradcheck(loss, inputs) and gradgradcheck(loss, inputs)


def test_where_it_begins_every_number_has_the_derivative_that_it_has_beside():
    """There smoothing and power are at a bound, from which they can still move."""
    loss = AdjustedLoss(replace(EVERYTHING, memory=None))

    def slope(phi):
        phi.requires_grad_()
        return torch.autograd.grad(loss.row_losses(phi, LOGITS, LABELS).sum(), phi)[0]

    at = slope(loss.phi.double())
    torch.testing.assert_close(at, slope(loss.phi.double() + 1e-9), rtol=1e-5, atol=1e-7)
    assert at.abs().min() > 0


def test_a_power_near_zero_is_smooth():
    """The first derivative in q is -(log p)^2 / 2 at zero, and both sides of the joint of its two forms agree."""
    log_p = torch.tensor([-3.0, -0.01, -40.0], dtype=torch.float64)
    q = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for i in range(3):
        (slope,) = torch.autograd.grad(powered(log_p, q)[i], q)
        assert slope.item() == pytest.approx(-(log_p[i].item() ** 2) / 2)
    at = torch.tensor([-0.03 - 1e-12, -0.03 + 1e-12], dtype=torch.float64)
    below, above = powered(at, torch.ones(1, dtype=torch.float64))
    assert below.item() == pytest.approx(above.item(), rel=1e-10)
    torch.testing.assert_close(powered(at, torch.ones(1, dtype=torch.float64)), 1 - at.exp())


@pytest.mark.parametrize("kind", ["smoothing", "power"])
def test_the_mean_push_is_that_of_cross_entropy(kind):
    """The size of the derivative in the label's logit, over answers p_y that are spread evenly."""
    p = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
    rest = ((1 - p) / (C - 1))[:, None].expand(-1, C - 1)
    logits = torch.cat((p[:, None], rest), dim=1).log().requires_grad_()
    labels = torch.zeros(len(p), dtype=torch.long)
    for number in (0.0, 0.2, 0.45):
        phi = torch.full((1,), number / 10, dtype=torch.float64)
        (slopes,) = torch.autograd.grad(rows(ALONE[kind], phi, logits, labels).sum(), logits)
        assert slopes[:, 0].abs().mean().item() == pytest.approx(0.5, rel=1e-3)


def test_shifts_and_temperature_leave_the_derivative_the_difference_of_answer_and_label():
    logits = LOGITS.clone().requires_grad_()
    for kind in ("shifts", "temperature"):
        phi = numbers(ALONE[kind])
        (slopes,) = torch.autograd.grad(rows(ALONE[kind], phi, logits).sum(), logits)
        if kind == "shifts":
            answer = (logits + torch.tensor(START).double() + 10 * phi).softmax(1)
        else:
            answer = (logits / (1 + 10 * phi)).softmax(1)
        torch.testing.assert_close(slopes, answer.detach() - F.one_hot(LABELS, C))


def test_a_common_shift_changes_nothing():
    phi = numbers(ALONE["shifts"])
    torch.testing.assert_close(rows(ALONE["shifts"], phi + 0.3), rows(ALONE["shifts"], phi))
    assert sum(AdjustedLoss(ALONE["shifts"]).report(phi).values()) == pytest.approx(0, abs=1e-6)


def test_numbers_stay_within_their_bounds():
    loss = AdjustedLoss(replace(EVERYTHING, channel=None))
    far = loss.within_bounds(torch.full((loss.spec.num_weights,), 9.0))
    assert {k: v for k, v in loss.report(far).items() if not k.startswith(("shift", "memory"))} == {
        "smoothing": 0.5, "power": 1.0, "temperature": 4.0,
    }  # fmt: skip
    assert (far[:C] == 9).all()  # of shifts there are no bounds
    low = loss.within_bounds(-far)
    assert loss.report(low)["power"] == loss.report(low)["smoothing"] == 0 and loss.report(low)["temperature"] == 0.25
    assert (loss.within_bounds(loss.phi) == loss.phi).all()
    wild = torch.full((EVERYTHING.num_weights,), 1e6, dtype=torch.float64)
    assert rows(EVERYTHING, wild).isfinite().all() and rows(EVERYTHING, -wild).isfinite().all()


def test_sure_and_wrong_answers_leave_everything_finite():
    logits = torch.tensor([[-200.0, 200.0, 0.0, 0.0]], requires_grad=True)
    phi = numbers(EVERYTHING).float().requires_grad_()
    loss = AdjustedLoss(EVERYTHING).row_losses(phi, logits, torch.tensor([0]), torch.full((1, C), 0.25))
    slopes = torch.autograd.grad(loss.sum(), (phi, logits))
    assert loss.isfinite().all() and all(slope.isfinite().all() for slope in slopes)


def test_the_channel_can_be_set_to_an_estimate():
    loss, phi = AdjustedLoss(EVERYTHING), numbers(EVERYTHING).float()
    matrix = torch.tensor([[0.6, 0.2, 0.2, 0], [0, 1, 0, 0], [0.1, 0, 0.9, 0], [0.3, 0.3, 0, 0.4]])
    moved = phi + loss.shift_to(matrix, phi)
    found = loss.noise(moved)
    assert isinstance(loss, ShiftedByNoise)
    assert found is not None and (found - matrix).abs().max() < 4 * FLOOR
    assert (moved[: -C * C] == phi[: -C * C]).all()
    with pytest.raises(ValueError, match="has no channel"):
        AdjustedLoss(ALONE["power"]).shift_to(matrix, torch.zeros(1))


def test_what_it_says_and_shows_of_itself():
    loss, phi = AdjustedLoss(EVERYTHING), numbers(EVERYTHING).float()
    assert isinstance(loss, KeptFamily)
    shifts = [f"shift_{label}" for label in range(C)]
    assert list(loss.report(phi)) == [*shifts, "smoothing", "power", "temperature", "memory_weight"]
    drawn = loss.pictures(phi)
    assert all(isinstance(picture, Bars) for picture in drawn) and len(drawn) == 7
    text = loss.describe(phi)
    assert "for 4 classes: 24 weights" in text and "Its power is" in text and "channel of label noise" in text
    many = AdjustedLoss(AdjustedSpec((0.0,) * (REPORTED_CLASSES + 1)))
    assert list(many.report(many.phi)) == ["shift_least", "shift_most"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "nothing is learned"),
        ({"shifts": (1.0,)}, "2 classes or more"),
        ({"shifts": (1.0, float("inf"))}, "finite numbers"),
        ({"shifts": (1.0, 2.0), "channel": 3}, "does not fit 2 shifts"),
        ({"channel": 1}, "2 classes or more"),
        ({"memory": 0.0}, "above 0"),
    ],
)
def test_what_makes_no_loss_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        AdjustedSpec(**spec)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="for 4 classes was given logits of 3"):
        AdjustedLoss(ALONE["shifts"]).row_losses(torch.zeros(4), torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="is for 4 classes"):
        AdjustedLoss(ALONE["shifts"]).check(Classification(), 3)
    AdjustedLoss(ALONE["power"]).check(Classification(), 3)


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"one_step", "finite_difference"}))
def test_every_engine_gives_the_hypergradient_of_plain_autograd(engine):
    spec = replace(EVERYTHING, memory=None)
    generator = np.random.default_rng(0)

    def batch(n):
        inputs = torch.from_numpy(generator.standard_normal((n, 3)))
        return Batch(inputs, torch.arange(n) % C, torch.full((n,), 1 / n, dtype=torch.float64), torch.arange(n))

    student = torch.nn.utils.skip_init(torch.nn.Linear, 3, C).double()
    with torch.no_grad():
        student.weight.copy_(torch.from_numpy(generator.standard_normal((C, 3))))
        student.bias.zero_()
    trainee = Trainee(FlatModule(student), Classification(), StudentSchedule(lambda step: 0.3, 2), SingleProcess())
    objective = LearnedObjective(trainee, AdjustedLoss(spec))
    problem, start, phi = objective.problem(objective.init()), trainee.initial(), numbers(spec)
    train, val = [batch(6), batch(6)], batch(5)
    found = hypergradient(problem, start, phi, train, val, rates=[0.3, 0.3], engine=engine)
    expected = naive_hypergradient(problem, start, phi, train, val, rates=[0.3, 0.3])
    torch.testing.assert_close(found.gradient, expected.gradient)
    assert found.gradient.abs().min() > 0
