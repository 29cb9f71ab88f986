"""Hypergradients of detection: equal to autograd through all steps of a rendering cell by cell, in float64."""

import pytest
from detection_problem import (
    DECAY,
    MOMENTUM,
    PAIRS,
    RATE,
    STEPS,
    TERMS,
    part_of,
    phi_of,
    plain_hypergradient,
    plain_loss,
    round_of,
    student,
    task_of,
)
from torch.func import functional_call

from l2t_ray.bilevel.engines import ENGINES
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.interfaces import RoundBatches
from l2t_ray.parallel.group import SingleProcess

CASES = {
    "terms, darknet, total": ("darknet", TERMS, "total"),
    "terms, paper, total": ("paper", TERMS, "total"),
    "terms, darknet, edet": ("darknet", TERMS, "edet"),
    "pairs, darknet, total": ("darknet", PAIRS, "total"),
    "pairs, paper, edet50": ("paper", PAIRS, "edet50"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Form, loss and error, with what autograd finds."""
    form, loss, error = CASES[request.param]
    task, phi = task_of(loss=form, error=error), phi_of(PairLoss(PAIRS) if loss is PAIRS else loss)

    def error_of(module, weights, val):
        if error == "total":
            return plain_loss(module, weights, None, val, form, None)
        return task.error(functional_call(module, weights, (val.inputs,)), val, SingleProcess())

    return (form, loss, error), plain_hypergradient(form, loss, round_of(), error_of, phi)


def through_the_seam(settings, engine, module, batches, group):
    form, loss, error = settings
    task = task_of(loss=form, error=error)
    trainee = Trainee(FlatModule(module), task, StudentSchedule(lambda step: RATE, STEPS, Sgd(MOMENTUM, DECAY)), group)
    family = PairLoss(PAIRS, task) if loss is PAIRS else loss
    objective = LearnedObjective(trainee, family)
    state = objective.constants_of_round(objective.init(), batches, 0)
    phi, rates = phi_of(family), [RATE] * STEPS
    return hypergradient(
        objective.problem(state), state.student, phi, batches.train, batches.val, rates=rates, engine=engine
    )


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_equals_autograd_through_all_steps(case, engine):
    settings, (error, expected) = case
    result = through_the_seam(settings, engine, student(), round_of(), SingleProcess())
    assert relative(result.error, error) < 1e-12
    assert expected.norm() > 1e-4 and relative(result.gradient, expected) < 1e-10


def test_two_workers_shares_add_up_to_it(case, run_on_two_workers):
    """One worker has an image with nothing in it, and fewer images than the other."""
    settings, (error, expected) = case
    replicas, batches = [student(), student()], round_of()

    def work(group):
        rows = slice(0, 2) if group.rank == 0 else slice(2, None)
        own = RoundBatches([part_of(batch, rows) for batch in batches.train], part_of(batches.val, rows))
        return through_the_seam(settings, "store", replicas[group.rank], own, group)

    first, second = run_on_two_workers(work)
    assert relative(first.error + second.error, error) < 1e-12
    assert relative(first.gradient + second.gradient, expected) < 1e-10
