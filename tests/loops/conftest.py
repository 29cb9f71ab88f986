"""Small classifiers, noisy and clean examples, and somebody else's loop."""

import pytest
import torch
from torch import nn


class Blobs:
    """Three blobs in the plane; 30 % of the training labels are turned to the next class."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(360) % 3
        corners = 3 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        inputs = (torch.randn(360, 2, generator=generator) + corners[labels]).to(dtype)
        turned = torch.where(torch.rand(300, generator=generator) < 0.3, (labels[:300] + 1) % 3, labels[:300])
        self.inputs, self.labels, self.true = inputs[:300], turned, labels[:300]
        self.clean = inputs[300:], labels[300:]

    def batches(self, steps, size=20):
        for step in range(steps):
            rows = torch.arange(step * size, (step + 1) * size) % 300
            yield self.inputs[rows], self.labels[rows], rows


@pytest.fixture
def blobs():
    return Blobs()


@pytest.fixture
def double_blobs():
    return Blobs(torch.float64)


@pytest.fixture
def make_net():
    """`make_net(*layers, dtype)`: two inputs, three classes, the same weights each time."""

    def make(*layers, dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(2, 16), *layers, nn.Tanh(), nn.Linear(16, 3)).to(dtype)

    return make
