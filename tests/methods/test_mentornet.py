import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problem import NUM_CLASSES, small_batch, small_round, small_student, small_trainee

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.methods.mentornet import Mentor, MentorNet, fit_mentor, predefined_weights

EXCESS = torch.tensor([-2.0, 0.0, 0.25, 0.75, 3.0])


class Validation:
    """Serves one validation part; all that MentorNet asks of its data."""

    num_classes = NUM_CLASSES
    whole = small_batch(12, seed=77)

    def epoch(self, index):
        return 0

    def validation(self, epoch):
        return [self.whole]

    def round(self, index):
        raise AssertionError

    def test(self):
        return []


def make(observed=None, **options):
    labels = torch.arange(12) % NUM_CLASSES if observed is None else observed
    return MentorNet(small_trainee(), Validation(), labels, num_rounds=100, seed=1, **options)


@pytest.mark.parametrize(
    ("percentage", "expected"),
    [
        (0, [1, 1, 1, 1, 1]),
        (18, [1, 1, 1, 1, 1]),
        (19, [1, 1, 0, 0, 0]),
        (89, [1, 1, 0, 0, 0]),
        (90, [1, 1, 0.75, 0.25, 0]),
        (99, [1, 1, 0.75, 0.25, 0]),
    ],
)
def test_predefined_curriculum(percentage, expected):
    torch.testing.assert_close(predefined_weights(EXCESS, percentage), torch.tensor(expected, dtype=torch.float32))


def test_gamma_widens_the_linear_part():
    torch.testing.assert_close(predefined_weights(EXCESS, 95, gamma=4.0), torch.tensor([1, 1, 0.9375, 0.8125, 0.25]))


@pytest.mark.parametrize(("index", "kept"), [(10, 3), (50, 6), (95, 6)])
def test_step_weighs_by_the_closed_form(index, kept):
    """Moving percentile, curriculum, dropout (floor(7 * 0.5) = 3 or floor(7 * 0.95) = 6) and scaled weight decay."""
    method, batch = make(), small_round().train[0]
    state = method.init()
    state.extra["moving_percentile"] = torch.tensor(0.6)
    batches = small_round()._replace(train=[batch])

    actual, metrics = method.round(state, batches, index)

    net = small_student().double()
    losses = F.cross_entropy(net(batch.inputs), batch.targets, reduction="none")
    quantile = np.percentile(losses.detach().numpy(), 75, method="nearest")
    moving = 0.5 * 0.6 + 0.5 * quantile
    excess = losses.detach() - moving
    curriculum = {10: torch.ones(7), 50: (excess <= 0).double(), 95: (1 - excess).clamp(0, 1)}[index]
    survivors = method._kept(7, index, 0)
    assert survivors.sum() == kept
    weights = curriculum * survivors / 7
    loss = (weights * losses).sum()
    decayed = loss + 1e-2 * weights.sum() * sum(p.square().sum() for p in net.parameters()) / 2
    gradients = torch.autograd.grad(decayed, list(net.parameters()))
    rate = 0.3 / (1 + 3 * index)
    theta = torch.cat([(p - rate * g).detach().reshape(-1) for p, g in zip(net.parameters(), gradients, strict=True)])
    torch.testing.assert_close(actual.student.theta, theta)
    assert actual.extra["moving_percentile"].item() == pytest.approx(moving)
    assert metrics["train_loss"] == pytest.approx(loss.item())
    assert (curriculum > 0).sum() > 0 and (index == 10 or (curriculum < 1).any())


def test_dropout_is_drawn_for_each_step():
    method = make()
    draws = {tuple(method._kept(25, index, step).tolist()) for index in range(3) for step in range(3)}
    assert len(draws) == 9
    assert torch.equal(method._kept(25, 1, 2), make()._kept(25, 1, 2))


def test_mentor_learns_which_labels_are_right():
    """Right labels have small losses here; what is in between is left to it."""
    generator = torch.Generator().manual_seed(0)
    is_right = torch.rand(300, generator=generator) < 0.6
    losses = torch.where(is_right, 0.3, 2.0) + 0.2 * torch.randn(300, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mentor = Mentor()
    fit_mentor(mentor, losses, losses - 1.0, is_right, num_steps=300, seed=0)
    with torch.no_grad():
        weights = mentor(torch.tensor([0.3, 2.0]), torch.tensor([-0.7, 1.0])).sigmoid()
    assert weights[0] > 0.95 and weights[1] < 0.05


def test_data_driven_mentor_is_fitted_once_after_the_burn_in():
    observed = torch.arange(12) % NUM_CLASSES
    observed[:5] = (observed[:5] + 1) % NUM_CLASSES
    method = make(observed, curriculum="data_driven", fit_steps=20)
    state = method.init()
    first = state.extra["mentor"]
    fitted = []
    for index in (17, 18, 19, 20, 90):
        state, _ = method.round(state, small_round(), index)
        fitted.append(state.extra["mentor"])
    assert torch.equal(fitted[1], first) and not torch.equal(fitted[2], first)
    assert torch.equal(fitted[3], fitted[2]) and torch.equal(fitted[4], fitted[2])


def test_data_driven_fit_is_to_the_observed_labels_of_the_validation_images():
    observed = torch.arange(12) % NUM_CLASSES
    observed[:5] = (observed[:5] + 1) % NUM_CLASSES
    method = make(observed, curriculum="data_driven", fit_steps=20)
    student = method.init().student
    losses, is_right = method._log(student, 0)
    logits = small_student().double()(Validation.whole.inputs)
    torch.testing.assert_close(losses, F.cross_entropy(logits, observed, reduction="none").detach())
    assert is_right.tolist() == [False] * 5 + [True] * 7


def test_data_driven_weights_are_the_networks():
    method = make(curriculum="data_driven")
    net = FlatModule(Mentor())
    losses = torch.tensor([0.1, 2.0])
    values = method._values(losses, losses - 1, net.initial(), 50)
    mentor = Mentor()
    mentor.load_state_dict({**net.views(net.initial()), **method._mentor_buffers})
    torch.testing.assert_close(values, mentor(losses, losses - 1).sigmoid())
    assert torch.equal(method._values(losses, losses - 1, net.initial(), 5), torch.ones(2))
