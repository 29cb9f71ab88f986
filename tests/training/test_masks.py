"""What is drawn inside a student while it trains is counted: by seed, arm and round, whatever else draws."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee, cross_entropy
from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.data.tensor_examples import loader_of_tensors
from l2t_ray.interfaces import StoppedError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.loop import Arm, Run

NUM_ROUNDS, NUM_STEPS = 4, 2


def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    inputs = torch.randn(30, 6, generator=generator) + labels[:, None]
    return loader_of_tensors(
        (inputs, labels), (inputs, labels), num_steps=NUM_STEPS, batch_size=10, val_batch_size=10, seed=0, device="cpu"
    )


def run_of(engine="store", *, seed=0, name="l2t_dln"):
    """A student with dropout, under a loss that learns; `engine` None: under cross-entropy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = FlatModule(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)))
    sgd, group, teacher = StudentSchedule(lambda step: 0.1, NUM_STEPS, Sgd(0.9)), SingleProcess(), None
    trainee = Trainee(student, Classification(), sgd, group)
    if engine is None:
        method = FixedLoss(trainee, cross_entropy)
    else:
        network = DynamicLossNetwork(init="linear", pairs="softmax", activation="silu", label_table=3, hidden=8)
        teacher = LocalTeacher(network.phi.detach(), AdamRule(network.phi.numel()))
        method = L2TDLN(LearnedObjective(trainee, PairLoss(network, trainee.task)), teacher, engine=engine)
    return Run(
        arms=[Arm(name, method, teacher)],
        student=student,
        task=Classification(),
        data=data(),
        group=group,
        num_rounds=NUM_ROUNDS,
        num_steps=NUM_STEPS,
        images_per_round=20,
        eval_every=2,
        checkpoint_every=1,
        seed=seed,
    )


def trained(run, start=None, **options):
    return run.train(start=start, store=None, on_row=lambda row: None, **options).state.student.theta


@pytest.mark.parametrize("engine", [None, "store", "recompute"])
def test_the_same_seed_gives_the_same_weights_whatever_else_draws(engine):
    expected = trained(run_of(engine))
    torch.rand(5)
    assert torch.equal(trained(run_of(engine)), expected)
    assert not torch.equal(trained(run_of(engine, seed=1)), expected)
    assert not torch.equal(trained(run_of(engine, name="another")), expected)


def test_training_moves_nothing_that_the_rest_of_the_process_draws():
    before = torch.get_rng_state()
    trained(run_of())
    assert torch.equal(torch.get_rng_state(), before)


def test_engines_see_the_same_masks_all_along():
    expected = trained(run_of("store"))
    for engine in ("recompute", "forward_over_reverse"):
        torch.testing.assert_close(trained(run_of(engine)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_goes_on_with_the_masks_of_the_undisturbed_one(stop):
    expected = trained(run_of())
    checkpoints = []
    with pytest.raises(StoppedError):
        trained(run_of(), on_checkpoint=checkpoints.append, should_stop=lambda: len(checkpoints) == stop - 1)
    assert checkpoints[-1].round == stop
    assert torch.equal(trained(run_of(), start=checkpoints[-1]), expected)


def test_evaluating_more_often_changes_no_masks():
    run = run_of()
    assert torch.equal(trained(replace(run, eval_every=1)), trained(run_of()))
