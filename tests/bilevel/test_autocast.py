"""Under autocast a student computes in bfloat16, and its hypergradient is that of single precision but for rounding."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch, StudentState
from l2t_ray.parallel.group import SingleProcess

LEAST_COSINE = 0.9999
"""Measured: 0.999999."""


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU()) for c in (1, 8)]
        self.blocks, self.head, self.seen = nn.Sequential(*blocks), nn.Linear(8, 3), set()

    def forward(self, x):
        y = self.blocks(x)
        self.seen.add(y.dtype)
        return self.head(y.mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.norm, self.head, self.seen = nn.LayerNorm(8), nn.Linear(8, 3), set()

    def forward(self, x):
        y = self.inner(x.squeeze(1))
        self.seen.add(y.dtype)
        weights = (y @ y.transpose(1, 2) / 8**0.5).softmax(dim=-1)
        return self.head(self.norm(weights @ y).mean(dim=1))


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 3
    inputs = torch.randn(12, 1, 6, 6, generator=generator) + labels[:, None, None, None]
    return Batch(inputs, labels, torch.full((12,), 1 / 12), torch.arange(12))


def result_of(module, engine, autocast):
    """The hypergradient of three steps in weights of classes and a temperature, both near one."""
    student = FlatModule(module, autocast=autocast)

    def inner(theta, phi, buffers, batch):
        logits = student(theta, buffers, batch.inputs, training=True)
        assert logits.dtype == torch.float32
        losses = F.cross_entropy(logits * phi[3].exp(), batch.targets, reduction="none")
        return (phi[batch.targets].exp() * losses).mean(), logits

    def outer(theta, buffers, batch):
        return F.cross_entropy(student(theta, buffers, batch.inputs, training=True), batch.targets)

    problem = InnerProblem(inner, outer, SingleProcess())
    theta = student.initial()
    state = StudentState(theta, torch.zeros_like(theta), student.initial_buffers())
    train = [batch(i) for i in range(3)]
    phi = torch.tensor([0.1, -0.1, 0.2, 0.0])
    return hypergradient(problem, state, phi, train, batch(9), rates=[0.1] * 3, engine=engine)


@pytest.mark.parametrize("engine", ["store", "recompute"])
@pytest.mark.parametrize("make", [Convolutions, Attention])
def test_hypergradients_are_close_to_those_of_single_precision(make, engine):
    torch.manual_seed(0)
    module = make()
    exact = result_of(copy.deepcopy(module), engine, None)
    result = result_of(module, engine, torch.bfloat16)
    assert torch.bfloat16 in module.seen and not torch.equal(result.gradient, exact.gradient)
    for own, other in ((result.gradient, exact.gradient), (result.student.theta, exact.student.theta)):
        assert own.dtype == torch.float32 and own.isfinite().all()
        assert F.cosine_similarity(own, other, dim=0) > LEAST_COSINE
        assert own.norm() == pytest.approx(other.norm().item(), rel=0.01)


def test_engines_take_the_same_steps():
    torch.manual_seed(0)
    module = Convolutions()
    students = [result_of(copy.deepcopy(module), engine, torch.bfloat16).student for engine in ("store", "recompute")]
    assert torch.equal(students[0].theta, students[1].theta)


def test_a_copy_is_cast_as_well():
    flat = pickle.loads(pickle.dumps(FlatModule(Attention(), autocast=torch.bfloat16)))
    output = flat(flat.initial(), flat.initial_buffers(), torch.randn(2, 1, 6, 6), training=False)
    assert flat.module.seen == {torch.bfloat16} and output.dtype == torch.float32


def test_nothing_is_cast_outside_of_a_call():
    flat = FlatModule(Attention(), autocast=torch.bfloat16)
    flat(flat.initial(), {}, torch.randn(2, 1, 6, 6), training=True)
    assert not torch.is_autocast_enabled("cpu")
