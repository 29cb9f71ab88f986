"""Small students in float64 on which a method's derivatives can be written out."""

import torch
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.interfaces import Batch, RoundBatches
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification

NUM_CLASSES, NUM_STEPS = 3, 3


class SmallStudent(nn.Module):
    """Two linear layers and tanh, with the features before the last layer on request."""

    def __init__(self, num_inputs=4, num_classes=NUM_CLASSES, width=6):
        super().__init__()
        self.first = nn.Linear(num_inputs, width)
        self.last = nn.Linear(width, num_classes)

    def forward(self, x, with_embedding=False):
        features = self.first(x.flatten(1)).tanh()
        return (self.last(features), features) if with_embedding else self.last(features)


def small_student(*sizes, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallStudent(*sizes)


def small_trainee(rate=0.3, momentum=0.9, weight_decay=1e-2):
    sgd = StudentSchedule(lambda step: rate / (1 + step), NUM_STEPS, Sgd(momentum, weight_decay))
    return Trainee(FlatModule(small_student().double()), Classification(), sgd, SingleProcess())


def small_batch(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(n, 4, generator=generator, dtype=torch.float64),
        torch.arange(n) % NUM_CLASSES,
        torch.full((n,), 1 / n, dtype=torch.float64),
        torch.arange(n),
    )


def small_round(index=0):
    return RoundBatches([small_batch(7, 10 * index + k) for k in range(NUM_STEPS)], small_batch(8, 10 * index + 9))
