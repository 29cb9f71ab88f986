"""Training with the task's own loss, on detection, which has two forms of it, and where there is one alone."""

from unittest.mock import Mock

import pytest
import torch
from small_problem import small_round, small_trainee
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.student import StudentSchedule, Trainee, cross_entropy
from l2t_ray.interfaces import Batch, RoundBatches, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.loss_terms import TermLossConfig
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.task_loss import TaskLoss, TaskLossConfig
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.detection import Detection

ANCHORS = (((6.0, 6.0),), ((14.0, 12.0),))
RATE = 0.01


class Detector(nn.Module):
    """Predictions of one anchor at strides 8 and 16."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 7, 8, 8), nn.Conv2d(3, 7, 16, 16)

    def forward(self, images):
        return tuple(head(images).permute(0, 2, 3, 1)[:, None] for head in (self.fine, self.coarse))


def detector():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Detector().double()


def detection(**settings):
    return Detection(("cat", "dog"), ANCHORS, (8, 16), **settings)


def trainee(task):
    schedule = StudentSchedule(lambda step: RATE, 1, Sgd(0.0, 0.0, False, None))
    return Trainee(FlatModule(detector()), task, schedule, SingleProcess())


def batch():
    generator = torch.Generator().manual_seed(2)
    boxes = torch.tensor([[[2.0, 3.0, 9.0, 8.0], [10, 4, 26, 20]], [[5, 5, 20, 19], [0, 0, 0, 0]]]).double()
    targets = {
        "boxes": boxes,
        "labels": torch.tensor([[0, 1], [1, -1]]),
        "crowd": torch.zeros(2, 2, dtype=torch.bool),
        "image": torch.arange(2),
    }
    inputs = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    return Batch(inputs, targets, torch.full((2,), 0.5, dtype=torch.float64), torch.arange(2))


def round_under(config, task):
    parts = Parts(trainee(task), Mock(), 1, 0)
    method = config.build(parts)
    return method.round(method.init(), RoundBatches([batch()], batch()), 0)


@pytest.mark.parametrize("form", ["darknet", "paper"])
def test_a_step_is_down_the_sum_of_the_terms_of_that_form(form):
    net, formed = detector(), detection(loss=form)
    terms = formed.terms(net(batch().inputs), batch())
    loss = torch.stack([(term.weights * term.values).sum() for term in terms.values.values()]).sum()
    loss.backward()
    expected = torch.cat([(p - RATE * p.grad).detach().reshape(-1) for p in net.parameters() if p.grad is not None])
    state, metrics = round_under(TaskLossConfig(form=form), detection())
    torch.testing.assert_close(state.student.theta, expected)
    assert metrics["train_loss"] == pytest.approx(loss.item())


def test_arms_of_both_forms_are_judged_alike():
    """By the run's own error, which is the total of the run's own form here."""
    task = detection(error="total")
    state, metrics = round_under(TaskLossConfig(form="paper"), task)
    outputs = trainee(task).outputs(state.student.theta, state.student.buffers, batch(), training=False)
    assert metrics["val_error"] == pytest.approx(task.error(outputs, batch(), SingleProcess()).item())


def test_a_form_has_its_usual_weights_unless_some_were_given():
    net = detector()
    outputs = net(batch().inputs)
    for task, weight in ((detection().in_form("paper"), 0.5), (detection(loc_weight=3.0).in_form("paper"), 1.5)):
        term = task.terms(outputs, batch()).values["l_loc"]
        torch.testing.assert_close(term.weights, torch.full_like(term.weights, weight))


def test_without_terms_it_is_cross_entropy():
    own, plain = TaskLoss(small_trainee()), FixedLoss(small_trainee(), cross_entropy)
    (one, _), (other, _) = (method.round(method.init(), small_round(), 0) for method in (own, plain))
    assert torch.equal(one.student.theta, other.student.theta)


def test_a_combination_of_terms_warms_up_under_their_sum():
    own = trainee(detection())
    warm = TermLossConfig().warm_up(own)
    state, _ = warm.round(warm.init(), RoundBatches([batch()], batch()), 0)
    expected, _ = round_under(TaskLossConfig(), detection())
    assert torch.equal(state.student.theta, expected.student.theta)


def test_arms_are_called_by_their_form():
    assert TaskLossConfig().arm == "task_loss" and TaskLossConfig(form="paper").arm == "paper"
    assert TaskLossConfig(form="darknet", clean_images="mixed").arm == "darknet-mixed"
    assert TaskLossConfig(form="paper", label="squares").arm == "squares"


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"method\.form is 'squares', .* detection has the forms darknet, paper; set"):
        round_under(TaskLossConfig(form="squares"), detection())
    parts = Parts(small_trainee(), Mock(), 1, 0)
    with pytest.raises(UserError, match=r"the loss of classification has one form alone; leave method\.form out"):
        TaskLossConfig(form="darknet").build(parts)


def test_weights_of_terms_multiply_what_they_count_in_the_tasks_own_loss():
    net, task = detector(), detection()
    terms = task.terms(net(batch().inputs), batch())
    sums = {name: (term.weights * term.values).sum().item() for name, term in terms.values.items()}
    _, metrics = round_under(TaskLossConfig(weights={"l_loc": 3.0, "l_conf_background": 0.25}), task)
    expected = sum(sums.values()) + 2 * sums["l_loc"] - 0.75 * sums["l_conf_background"]
    assert metrics["train_loss"] == pytest.approx(expected)


def test_a_weight_of_a_term_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"method\.weights has 'loc', and the loss of detection has the terms l_loc, "):
        round_under(TaskLossConfig(weights={"loc": 2.0}), detection())
    with pytest.raises(UserError, match=r"method\.weights has 'l_loc', and the loss of classification has no terms;"):
        TaskLossConfig(weights={"l_loc": 2.0}).build(Parts(small_trainee(), Mock(), 1, 0))
