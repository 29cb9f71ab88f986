"""A round in numbers, or a sentence about what was not finite and what helps."""

import re

import pytest
import torch

from l2t_ray.bilevel.unroll import StepStatistics
from l2t_ray.core.round_metrics import round_metrics
from l2t_ray.interfaces import DivergenceError
from l2t_ray.parallel.group import SingleProcess


def statistics(loss=1.0, norm=1.0):
    return StepStatistics(torch.tensor(loss), torch.tensor(2.0), torch.tensor(norm))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -2e8])
def test_divergence_names_the_value(bad):
    good = statistics()
    with pytest.raises(DivergenceError, match=re.escape(f"the training loss is {bad / 2:g}") + "$"):
        round_metrics(SingleProcess(), torch.tensor(0.5), [good._replace(loss=torch.tensor(0.0)), statistics(loss=bad)])
    with pytest.raises(DivergenceError, match="the gradient norm is"):
        round_metrics(SingleProcess(), torch.tensor(0.5), [good, statistics(norm=2 * bad)])
    with pytest.raises(DivergenceError, match=re.escape(f"the validation error is {bad:g}") + "$"):
        round_metrics(SingleProcess(), torch.tensor(bad), [good])
    with pytest.raises(DivergenceError, match=r"the training loss is .* and the validation error is"):
        round_metrics(SingleProcess(), torch.tensor(bad), [statistics(loss=bad)])


def test_metrics_are_means_over_steps_and_sums_over_workers(run_on_two_workers):
    """Losses, |dL/dz| sums and errors are shares; a gradient norm is the global one already."""
    steps = [statistics(1.0, 3.0), statistics(2.0, 5.0)]
    one = round_metrics(SingleProcess(), torch.tensor(0.5), steps)
    assert one == {"train_loss": 1.5, "logit_gradient_sum": 2.0, "gradient_norm": 4.0, "val_error": 0.5}
    for two in run_on_two_workers(lambda group: round_metrics(group, torch.tensor(0.5), steps)):
        assert two == {"train_loss": 3.0, "logit_gradient_sum": 4.0, "gradient_norm": 4.0, "val_error": 1.0}
    assert "val_error" not in round_metrics(SingleProcess(), None, steps)


def advice(losses, norms):
    steps = [statistics(loss, norm) for loss, norm in zip(losses, norms, strict=True)]
    with pytest.raises(DivergenceError) as raised:
        round_metrics(SingleProcess(), torch.tensor(0.5), steps)
    return raised.value.advice


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_gradient_that_is_not_finite_where_the_loss_is_asks_for_an_epsilon(bad):
    assert "add an epsilon" in advice([1.0, 1.0, NAN], [2.0, bad, NAN])


@pytest.mark.parametrize(
    ("losses", "norms"),
    [([1.0, 9e8, NAN], [2.0, NAN, NAN]), ([1.0, NAN], [2.0, NAN]), ([1.0, 2.0], [9e9, NAN]), ([1.0, 9e8], [1.0, 1.0])],
)
def test_steps_that_grew_before_ask_for_smaller_ones(losses, norms):
    assert advice(losses, norms) is None


def test_a_loss_that_was_never_finite_is_told_from_one_that_diverged():
    for losses, is_before_steps in (([NAN, NAN], True), ([1.0, NAN], False)):
        with pytest.raises(DivergenceError) as raised:
            round_metrics(SingleProcess(), torch.tensor(0.5), [statistics(loss) for loss in losses])
        assert raised.value.is_before_steps is is_before_steps
