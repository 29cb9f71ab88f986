"""The hypergradient through somebody else's step against autograd through the same step, in double precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.interfaces import UserError
from l2t_ray.loops.clean_set import CleanSet
from l2t_ray.loops.one_step import OneStep
from l2t_ray.training.user_module import answer

RATE, DECAY = 0.05, 0.02
EPS = 1e-3
"""Of Adam: with less, its first step has the length of its rate whatever the gradient, and next to no derivative."""
LOSS = LearnedLoss(PairLoss(DynamicLossNetwork(layers=0, pairs="softmax", channel=3))).double()
PHI = 0.3 * torch.randn(9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def loss_at(targets):
    return lambda logits, phi: functional_call(LOSS, {"phi": phi}, (logits, targets))


def sgd_by_hand(p, g, state, nesterov):
    direction = g + DECAY * p
    velocity = 0.9 * state["momentum_buffer"] + direction if state else direction
    return p - RATE * (direction + 0.9 * velocity if nesterov else velocity)


def adam_by_hand(p, g, state, decoupled):
    count = float(state["step"]) + 1 if state else 1.0
    entering = g if decoupled else g + DECAY * p
    mean = 0.9 * state.get("exp_avg", 0.0) + 0.1 * entering
    square = 0.999 * state.get("exp_avg_sq", 0.0) + 0.001 * entering**2
    kept = p * (1 - RATE * DECAY) if decoupled else p
    root = (square / (1 - 0.999**count) + 1e-300).sqrt()  # at 0 it would have no derivative
    return kept - RATE * (mean / (1 - 0.9**count)) / (root + EPS)


OPTIMIZERS = {
    "sgd with momentum": (
        lambda ps: torch.optim.SGD(ps, RATE, momentum=0.9, weight_decay=DECAY),
        lambda *of: sgd_by_hand(*of, nesterov=False),
    ),
    "nesterov": (
        lambda ps: torch.optim.SGD(ps, RATE, momentum=0.9, weight_decay=DECAY, nesterov=True),
        lambda *of: sgd_by_hand(*of, nesterov=True),
    ),
    "adam": (
        lambda ps: torch.optim.Adam(ps, RATE, eps=EPS, weight_decay=DECAY),
        lambda *of: adam_by_hand(*of, decoupled=False),
    ),
    "adamw": (
        lambda ps: torch.optim.AdamW(ps, RATE, eps=EPS, weight_decay=DECAY),
        lambda *of: adam_by_hand(*of, decoupled=True),
    ),
}


def clipped_to_norm(gradients):
    norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
    return [g * (0.01 / (norm + 1e-6)) for g in gradients]


CHANGES = {
    "left alone": (None, lambda ps: None, lambda gs: gs),
    "clipped to a norm": (0.01, lambda ps: nn.utils.clip_grad_norm_(ps, 0.01), clipped_to_norm),
    "clipped by value": (
        None,
        lambda ps: nn.utils.clip_grad_value_(ps, 1e-3),
        lambda gs: [g.clamp(-1e-3, 1e-3) for g in gs],
    ),
}


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_it_is_that_of_autograd_through_the_step(double_blobs, make_net, optimizer, change, steps_before):
    """With dropout, batch norm, two minibatches accumulated, the loss weighed and added to another."""
    make_optimizer, by_hand = OPTIMIZERS[optimizer]
    max_norm, alter, altered = CHANGES[change]
    blobs, model = double_blobs, make_net(nn.BatchNorm1d(16), nn.Dropout(0.3), dtype=torch.float64)
    halves = [(blobs.inputs[:20], blobs.labels[:20]), (blobs.inputs[20:50], blobs.labels[20:50])]
    parameters, stepper = list(model.parameters()), make_optimizer(model.parameters())
    for _ in range(steps_before):
        stepper.zero_grad()
        F.cross_entropy(model(halves[0][0]), halves[0][1]).backward()
        stepper.step()
    stepper.zero_grad()
    one_step = OneStep(model, stepper, max_norm)
    clean = CleanSet(model, blobs.clean, answer, batch_size=60, seed=0)
    before, state = copy.deepcopy(model), copy.deepcopy(stepper.state_dict()["state"])
    draws = torch.get_rng_state()
    for inputs, labels in halves:
        logits = model(inputs)
        loss = loss_at(labels)(logits, PHI)
        one_step.watch(loss, logits, loss_at(labels), PHI)
        (0.5 * loss + 0.1 * logits.square().mean()).backward()
    alter(parameters)
    error, actual = one_step.hypergradient(clean, 0, None)
    stepper.step()
    one_step.check_taken()

    torch.set_rng_state(draws)
    phi, total = PHI.clone().requires_grad_(), 0
    for inputs, labels in halves:
        logits = before(inputs)
        total = total + 0.5 * loss_at(labels)(logits, phi) + 0.1 * logits.square().mean()
    theta = list(before.parameters())
    gradients = altered(torch.autograd.grad(total, theta, create_graph=True))
    moved = [by_hand(p, g, state.get(i, {})) for i, (p, g) in enumerate(zip(theta, gradients, strict=True))]
    for own, theirs in zip(moved, parameters, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-10)
    names = [name for name, _ in before.named_parameters()]
    with clean._unmoved(0):  # the same dropout
        rows = clean.rows(0)
        logits = functional_call(before, dict(zip(names, moved, strict=True)), (blobs.clean[0][rows],))
    expected_error = F.cross_entropy(logits, blobs.clean[1][rows])
    (expected,) = torch.autograd.grad(expected_error, phi)
    assert abs(error - expected_error.item()) < 1e-12
    assert expected.norm() > 1e-8 and relative_error(actual, expected) < 1e-10


def taken(model, blobs, *, alter=lambda: None, optimizer=None, max_norm=None):
    """A watched step, as far as its hypergradient."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    one_step = OneStep(model, optimizer, max_norm)
    logits, labels = model(blobs.inputs[:20]), blobs.labels[:20]
    loss = F.cross_entropy(logits, labels)
    one_step.watch(loss, logits, loss_at(labels), PHI)
    loss.backward()
    alter()
    one_step.hypergradient(CleanSet(model, blobs.clean, answer, batch_size=60, seed=0), 0, None)
    return one_step, optimizer


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_gradients_that_are_changed_in_another_way_are_refused(blobs, make_net, factor):
    model = make_net()

    def scale():
        for p in model.parameters():
            p.grad.mul_(factor)

    for max_norm in (None, 0.05):
        model.zero_grad()
        with pytest.raises(UserError, match=r"gradients were changed between backward\(\) and the optimizer's step"):
            taken(model, blobs, alter=scale, max_norm=max_norm)


def test_clipping_to_another_norm_than_was_said_is_refused(blobs, make_net):
    model = make_net()
    with pytest.raises(UserError, match=r"give the same max_norm here \(it is 0\.02\)"):
        taken(model, blobs, alter=lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.01), max_norm=0.02)


def test_a_gradient_that_is_shorter_than_the_norm_is_not_clipped(blobs, make_net):
    model = make_net()
    taken(model, blobs, alter=lambda: nn.utils.clip_grad_norm_(model.parameters(), 100.0), max_norm=100.0)


def test_a_step_that_is_not_what_the_settings_say_is_refused(blobs, make_net):
    class Sly(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(0.2 * p.grad)

    model = make_net()
    one_step, optimizer = taken(model, blobs, optimizer=Sly(model.parameters(), 0.1))
    optimizer.step()
    with pytest.raises(UserError, match=r"optimizer \(Sly\) took another step than its settings say"):
        one_step.check_taken()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: torch.optim.RMSprop(ps), "must be torch.optim.SGD, Adam or AdamW, .* got RMSprop"),
        (lambda ps: torch.optim.Adam(ps, amsgrad=True), r"\(Adam\) has amsgrad=True"),
        (lambda ps: torch.optim.AdamW(ps, maximize=True), "has maximize=True"),
        (lambda ps: torch.optim.SGD(ps, momentum=0.9, dampening=0.1), "has dampening=0.1"),
    ],
)
def test_optimizers_that_cannot_be_differentiated_are_refused_in_a_sentence(make_net, make, message):
    model = make_net()
    with pytest.raises(UserError, match=message):
        OneStep(model, make(model.parameters()), None)


def test_weights_in_half_precision_are_refused(make_net):
    model = make_net(dtype=torch.bfloat16)
    with pytest.raises(UserError, match="weights in bfloat16, too coarse"):
        OneStep(model, torch.optim.SGD(model.parameters(), 0.1), None)


class Once(torch.autograd.Function):
    """An identity whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


class NoSecond(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_a_missing_second_derivative_is_refused_by_name(blobs, make_net):
    model = make_net(NoSecond())
    with pytest.raises(UserError, match=r"a second derivative is missing.*Once"):
        taken(model, blobs)


def test_logits_of_another_model_are_refused(blobs, make_net):
    model, other = make_net(), make_net()
    one_step = OneStep(model, torch.optim.SGD(model.parameters(), 0.1), None)
    with pytest.raises(UserError, match="the logits depend on no parameter that the optimizer moves"):
        one_step.try_on(other(blobs.inputs[:4]))


def test_parameters_without_a_gradient_stay_out_of_it(blobs, make_net):
    """A frozen one, and one that had no part in the step."""
    model = make_net()
    model[0].bias.requires_grad_(False)
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    one_step, optimizer = taken(model, blobs)
    optimizer.step()
    one_step.check_taken()
    assert {step.parameter.shape for step in one_step._ahead} == {(16, 2), (3, 16), (3,)}
