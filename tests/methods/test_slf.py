import pytest
import torch
import torch.nn.functional as F
from small_problem import NUM_CLASSES, small_round, small_student, small_trainee

from l2t_ray.methods.slf import CANDIDATES, SLF, candidate_losses, gates, large_margin

NUM_CANDIDATES = len(CANDIDATES)


def make(**options):
    return SLF(small_trainee(), num_classes=NUM_CLASSES, num_rounds=10, hidden=4, seed=1, **options)


def spread_state(method):
    """In double precision, with a decision network that decides something."""
    state = method.init()
    extra = {name: value.double() if value.is_floating_point() else value for name, value in state.extra.items()}
    generator = torch.Generator().manual_seed(2)
    extra["weights"] = torch.randn(extra["weights"].shape, generator=generator, dtype=torch.float64)
    return state._replace(extra=extra)


def test_candidates_are_what_they_say():
    logits = torch.randn(5, NUM_CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    p, one_hot = logits.softmax(1), F.one_hot(labels, NUM_CLASSES).double()
    p_label = (p * one_hot).sum(1)
    others = (logits - 1e9 * one_hot).amax(1)
    raised = p_label.log() - 1 - torch.log(p_label * (torch.tensor(-1.0).exp() - 1) + 1)
    expected = torch.stack(
        (
            -p_label.log(),
            -((0.9 * one_hot + 0.1 / NUM_CLASSES) * p.log()).sum(1),
            -((1 - p_label) ** 2) * p_label.log(),
            ((p - one_hot) ** 2).sum(1),
            (1 + others - (logits * one_hot).sum(1)).clamp(min=0),
            (1 - p_label**0.7) / 0.7,
            -raised,
        ),
        dim=1,
    )
    torch.testing.assert_close(candidate_losses(logits, labels), expected)
    torch.testing.assert_close(large_margin(logits, labels), expected[:, -1])


def test_gates_are_zero_or_one_in_the_limit():
    generator = torch.Generator().manual_seed(0)
    decisions, noise = torch.randn(2, NUM_CANDIDATES, 2, generator=generator)
    is_on = (decisions + noise)[:, 1] > (decisions + noise)[:, 0]
    cold, warm = gates(decisions, noise, 1e-4), gates(decisions, noise, 1.0)
    assert torch.equal(cold, is_on.float()) and is_on.any() and not is_on.all()
    assert ((warm > 0) & (warm < 1)).all() and torch.equal(warm > 0.5, is_on)


def test_gates_open_as_often_as_the_decisions_say():
    """Gumbel noise: P(on) = softmax(decisions)[on], whatever the temperature."""
    method = make()
    noise = torch.stack([method._noise(0, step) for step in range(2000)])
    decisions = torch.tensor([[0.0, 1.0]]).expand(NUM_CANDIDATES, 2)
    share = torch.stack([gates(decisions, n, 1e-3) for n in noise]).mean()
    # Binomial, 14,000 draws: three standard deviations are 0.011.
    assert share.item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.011)


@pytest.mark.parametrize("mode", ["validation", "single"])
def test_first_step(mode):
    """Noise, gates, scaled losses, and what the decision network learns from, written out."""
    method, batches = make(mode=mode, learning_rate=0.05), small_round()
    batches = batches._replace(train=batches.train[:1])
    state, (batch, val) = spread_state(method), (batches.train[0], batches.val)

    actual, metrics = method.round(state, batches, 4)

    leaf = state.extra["weights"].clone().requires_grad_()
    w1, b1, w2, b2 = leaf.split([4 * 8, 4, 2 * NUM_CANDIDATES * 4, 2 * NUM_CANDIDATES])
    student = small_student().double()
    logits = student(batch.inputs)
    losses = F.cross_entropy(logits, batch.targets, reduction="none").detach()[:, None]
    progress = torch.full_like(losses, 0.4)
    seen = torch.cat((logits.detach().softmax(1), F.one_hot(batch.targets, 3), losses, progress), 1)
    decisions = ((seen @ w1.view(4, 8).T + b1).relu() @ w2.view(-1, 4).T + b2).mean(0).view(-1, 2)
    scores = (decisions + method._noise(4, 0)) / 0.1**0.4
    opened = (scores[:, 1] - scores[:, 0]).sigmoid()
    means = candidate_losses(logits, batch.targets).mean(0)
    undecided = candidate_losses(torch.zeros(1, 3), torch.tensor([0]))[0].double()
    loss = (opened * means / undecided).sum() / opened.sum()
    if mode == "validation":
        parameters = dict(student.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        rate = 0.3 / (1 + 4 * 3)
        moved = {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        outer = F.cross_entropy(torch.func.functional_call(student, moved, val.inputs), val.targets)
    else:
        outer = loss
        assert metrics["train_loss"] == pytest.approx(loss.item())
    (expected,) = torch.autograd.grad(outer, leaf)
    torch.testing.assert_close(actual.extra["first_moment"] / 0.1, expected)
    torch.testing.assert_close(actual.extra["scales"], 0.9 * undecided + 0.1 * means.detach())
