"""What a model keeps in plain attributes is refused where it computes with it, and let be where it does not."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.interfaces import UserError

INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """A linear layer, and what a function makes of its outputs and of the module."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, self.layer(x))


def checked(module):
    flat = FlatModule(module)
    return flat.check(flat.initial(), flat.initial_buffers(), INPUTS)


def counted(module):
    module.calls += 1
    return module.calls


def averaged(module, outputs):
    module.mean = 0.9 * module.mean + 0.1 * outputs.detach().mean()
    return outputs - module.mean


def remembered(module, outputs):
    module.history.append(outputs.mean().item())
    return outputs * (1 + len(module.history))


def from_dictionary(module, outputs):
    module.state["scale"] *= 0.9
    return outputs * module.state["scale"]


READ = {
    "a warm-up": ("calls", lambda m, y: y * min(1, counted(m) / 10), {"calls": 0}),
    "a switch that is far away": ("calls", lambda m, y: y if counted(m) < 500 else y.tanh(), {"calls": 0}),
    "a share that falls": ("calls", lambda m, y: y * counted(m) ** -0.5, {"calls": 1.0}),
    "an average of outputs": ("mean", averaged, {"mean": torch.zeros(())}),
    "a list": ("history", remembered, {"history": []}),
    "a dictionary": ("state", from_dictionary, {"state": {"scale": 1.0}}),
    "torch's generator": ("draw", lambda m, y: y + torch.rand(2, generator=m.draw), {"draw": torch.Generator()}),
    "NumPy's generator": ("draw", lambda m, y: y * m.draw.random(), {"draw": np.random.default_rng(0)}),
    "Python's generator": ("draw", lambda m, y: y * m.draw.random(), {"draw": random.Random(0)}),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_changed_and_computed_with_is_refused_by_name(name):
    attribute, function, attributes = READ[name]
    module = nn.Sequential(Keeps(function, **attributes))
    with pytest.raises(UserError, match=rf"changes 0\.{attribute} and computes with it, which is no buffer: .*; keep"):
        checked(module)


def kept_for_looks(module, outputs):
    module.last, module.calls = outputs, module.calls + 1
    module.log.append(outputs.mean().item())
    return outputs


def cached(module, outputs):
    if module.places is None:
        module.places, module.ready = torch.arange(2.0), True
    return outputs + module.places


def in_buffer(module, outputs):
    module.steps = module.steps + 1
    return outputs * (1 + 0.1 * module.steps)


def with_steps():
    module = Keeps(in_buffer)
    module.register_buffer("steps", torch.zeros(()))
    return module


NOT_READ = {
    "a counter and the last outputs": lambda: Keeps(kept_for_looks, calls=0, log=[], last=None),
    "a cache": lambda: Keeps(cached, places=None, ready=False),
    "a buffer": with_steps,
    "dropout": lambda: Keeps(lambda m, y: m.drop(y), drop=nn.Dropout(0.5)),
    "noise of the process": lambda: Keeps(lambda m, y: y * random.random()),
    "a recurrent layer": lambda: Keeps(lambda m, y: m.rnn(y)[0], rnn=nn.LSTM(2, 2)),
    "batch norm": lambda: Keeps(lambda m, y: m.norm(y), norm=nn.BatchNorm1d(2)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_computed_with_or_in_a_buffer_is_let_be(name):
    module = NOT_READ[name]()
    before = getattr(module, "calls", None)
    assert checked(module) == []
    assert before is None or 0 < module.calls < 10, "counters are where passes left them"


def test_parameters_without_a_part_in_the_output_are_named():
    module = Keeps(lambda m, y: y, spare=nn.Linear(3, 3))
    assert checked(module) == ["spare.weight", "spare.bias"]
