"""L2R's reverse pass against an explicit unroll of momentum SGD, and what its weights are."""

import pytest
import torch
import torch.nn.functional as F
from small_problem import NUM_CLASSES, NUM_STEPS, small_batch, small_round, small_student, small_trainee
from torch.func import functional_call

from l2t_ray.methods.l2r import L2R, Weigher, margins

RATE, MOMENTUM, DECAY = 0.3, 0.9, 1e-2


def make(**options):
    sizes = {"num_features": 6, "num_classes": NUM_CLASSES, "num_rounds": 10, "hidden": 5, "label_size": 2}
    return L2R(small_trainee(RATE, MOMENTUM, DECAY), **sizes, **options)


def spread_state(method):
    """In double precision, with a last layer that is not zero."""
    state = method.init()
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(state.extra["weights"].shape, generator=generator, dtype=torch.float64)
    zero = torch.zeros_like(weights)
    return state._replace(extra={**state.extra, "weights": weights, "first_moment": zero, "second_moment": zero})


def explicit_gradient(weights, batches, progress, first=0):
    """d validation error / d teacher weights through the steps from `first` on, all in one graph."""
    student = small_student().double()
    weigher = Weigher(6, NUM_CLASSES, 5, 2).double()
    shapes = {name: p.shape for name, p in weigher.named_parameters()}
    leaf = weights.clone().requires_grad_()
    pieces = leaf.split([s.numel() for s in shapes.values()])
    teacher = {name: piece.view(s) for piece, (name, s) in zip(pieces, shapes.items(), strict=True)}
    theta = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    for step, batch in enumerate(batches.train):
        if step == first:
            theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
            velocity = {name: v.detach() for name, v in velocity.items()}
        logits, features = functional_call(student, theta, batch.inputs, {"with_embedding": True})
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        p = logits.detach().softmax(1)
        others = [[p[i, j] for j in range(NUM_CLASSES) if j != y] for i, y in enumerate(batch.targets)]
        margin = torch.stack([p[i, y] - max(others[i]) for i, y in enumerate(batch.targets)])
        seen = (features.detach(), batch.targets, losses.detach(), margin, progress)
        values = functional_call(weigher, teacher, seen)
        loss = (values / values.mean() * losses).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        velocity = {n: MOMENTUM * velocity[n] + g + DECAY * theta[n] for n, g in zip(theta, gradients, strict=True)}
        theta = {n: p - RATE / (1 + step) * velocity[n] for n, p in theta.items()}
    error = F.cross_entropy(functional_call(student, theta, batches.val.inputs), batches.val.targets)
    (gradient,) = torch.autograd.grad(error, leaf)
    return gradient, torch.cat([p.detach().reshape(-1) for p in theta.values()])


@pytest.mark.parametrize("engine", ["store", "recompute"])
@pytest.mark.parametrize("horizon", [None, 1, 2])
def test_reverse_pass_is_that_of_an_explicit_unroll(engine, horizon):
    method, batches = make(engine=engine, horizon=horizon), small_round()
    state = spread_state(method)

    actual, metrics = method.round(state, batches, 0)

    first = 0 if horizon is None else NUM_STEPS - horizon
    gradient, theta = explicit_gradient(state.extra["weights"], batches, 0.0, first)
    torch.testing.assert_close(actual.student.theta, theta)
    torch.testing.assert_close(actual.extra["first_moment"] / 0.1, gradient)  # Adam's first moment, (1 - 0.9) g
    assert metrics["hypergradient_norm"] == pytest.approx(gradient.norm().item())


def test_progress_is_read():
    method, batch = make(), small_batch(9, seed=3)
    state = spread_state(method)
    weights = state.extra["weights"]
    losses = [method.loss(progress, state.student.theta, weights, {}, batch)[0] for progress in (0.0, 0.5)]
    assert losses[0] != losses[1]


def test_begins_as_cross_entropy():
    method, batch = make(), small_batch(9, seed=3)
    state = method.init()
    loss, logits = method.loss(0.0, state.student.theta, state.extra["weights"].double(), {}, batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.targets))


def test_margins():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]).log_softmax(1)
    p = logits.exp()[0]
    expected = torch.stack((p[0] - p[1], p[2] - p[0]))
    torch.testing.assert_close(margins(logits, torch.tensor([0, 2])), expected)
