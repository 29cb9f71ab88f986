"""Small random problems in float64 on which every engine can be checked against autograd."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import Batch, StudentState
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification

NUM_CLASSES = 4


class NormalisedByHand(nn.Module):
    """Weight normalisation in plain operations."""

    def forward(self, g, v):
        return g * v / v.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()

    def right_inverse(self, weight):
        return weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt(), weight


class DrawnElsewhere(nn.Module):
    """Leaves out maps by NumPy's global stream. (Python's is of no use here: the tests' type checker draws from it.)"""

    def forward(self, x):
        kept = torch.from_numpy(np.random.rand(x.shape[1]) < 0.5)  # noqa: NPY002
        return x * kept[:, None, None]


def small_net(norm: str) -> nn.Module:
    """A convolutional net with the given normalisation. Tanh: smooth, so that finite differences mean something."""
    norms = {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(6),
        "group": lambda: nn.GroupNorm(3, 6),
        "dropout": nn.Dropout,
        "dropout in a block": lambda: nn.Sequential(nn.GroupNorm(3, 6), nn.Dropout()),  # computed again where lean
        "drawn elsewhere": DrawnElsewhere,
        "weights": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)),
        "weights by hand": lambda: register_parametrization(nn.Conv2d(6, 6, 1), "weight", NormalisedByHand()),
    }
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), norms[norm](), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, NUM_CLASSES)
    )


class Problem:
    """An inner problem with data, everything in float64."""

    def __init__(
        self, norm="batch", momentum=0.9, weight_decay=1e-2, num_steps=5, seed=0, optimizer=None, **loss_options
    ):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.student = FlatModule(small_net(norm).double())
        options = {"pairs": "softmax", "activation": "silu", "label_table": NUM_CLASSES, "hidden": 8} | loss_options
        self.loss_network = DynamicLossNetwork(seed=seed, **options)
        self.phi = self.loss_network.phi.detach().double()
        self.phi = self.phi + 0.1 * torch.randn(self.phi.shape, generator=generator, dtype=torch.float64)
        self.task = Classification()
        self.batches = [self.batch(7, generator) for _ in range(num_steps)]
        self.val = self.batch(9, generator)
        self.rates = [0.1 + 0.02 * k for k in range(num_steps)]
        theta = self.student.initial()
        velocity = 0.1 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        self.start = StudentState(theta, velocity if momentum else torch.zeros_like(theta), self.buffers())
        if optimizer is not None:
            self.start = self.start._replace(carried=optimizer.begin(theta, {}).carried)
        optimizer = optimizer or Sgd(momentum, weight_decay)
        self.problem = InnerProblem(self.inner_loss, self.outer_error, SingleProcess(), optimizer)

    def buffers(self):
        return self.student.initial_buffers()

    @staticmethod
    def batch(n, generator):
        return Batch(
            torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64),
            torch.randint(NUM_CLASSES, (n,), generator=generator),
            torch.full((n,), 1 / n, dtype=torch.float64),
            torch.arange(n),
        )

    def inner_loss(self, theta, phi, buffers, batch):
        logits = self.student(theta, buffers, batch.inputs, training=True)
        return (batch.weights * self.loss_network.losses_at(phi, logits, batch.targets)).sum(), logits

    def outer_error(self, theta, buffers, batch):
        return self.task.error(self.student(theta, buffers, batch.inputs, training=True), batch, SingleProcess())
