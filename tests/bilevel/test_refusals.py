"""Models that would be trained wrongly without a word are refused in a sentence, before anything is trained."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.interfaces import UserError

INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def mixed_types():
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double())


def complex_weight():
    module = nn.Linear(3, 2)
    module.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return module


def shared_memory():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = nn.Parameter(module[0].weight.data)
    return module


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.LazyLinear(2), "weight has no shape yet .* call the model once"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d()), "1.weight has no shape yet"),
        (mixed_types, r"one dtype, got float32 \(0.bias\), float64 \(1.bias\); convert"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta")), r"one device, got cpu .* meta"),
        (complex_weight, r"extra is complex; .*torch.complex\(w"),
        (lambda: nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager")), "the model is compiled"),
        (shared_memory, "0.weight and 1.weight share memory"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_parameters_that_do_not_make_one_vector_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        FlatModule(make())


def test_frozen_parameters_may_be_of_any_type():
    module = mixed_types()
    module[1].requires_grad_(False)
    module.register_parameter("table", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    flat = FlatModule(module)
    assert flat.initial().dtype == torch.float32 and flat.initial_buffers()["table"].dtype == torch.int64


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    with pytest.raises(UserError, match="no parameter to train: all are frozen"):
        FlatModule(nn.Linear(3, 2).requires_grad_(False)).initial()


class Model(nn.Module):
    """Computes by a function of itself, with a linear layer, a buffer and whatever is planted."""

    def __init__(self, function, **planted):
        super().__init__()
        self.linear, self.function = nn.Linear(3, 2), function
        self.register_buffer("buffer", torch.zeros(2))
        self.register_buffer("later", None)
        vars(self).update(planted)

    def forward(self, x):
        return self.function(self, x)


def closure_over_weight():
    model = Model(None)
    weight = model.linear.weight
    model.function = lambda m, x: F.linear(x, weight, m.linear.bias)
    return model


def bound_weight():
    model = Model(lambda m, x: m.bound(x))
    vars(model)["bound"] = partial(F.linear, weight=model.linear.weight)  # and no other weight is used
    return model


def closure_over_buffer():
    model = Model(None)
    buffer = model.buffer
    model.function = lambda m, x: m.linear(x) + buffer.add_(1)
    return model


def assigned_weight(m, x):
    m.linear.weight = nn.Parameter(m.linear.weight * 0.9)
    return m.linear(x)


def clipped(m, x):
    m.linear.weight.data.clamp_(-1, 1)  # further than where they start
    return m.linear(x)


def decayed(m, x):
    m.linear.weight.data.mul_(0.9)
    return m.linear(x)


def exchanged(m, x):
    m.linear.weight.data = m.linear.weight.data * 0.9
    return m.linear(x)


def normalised(m, x):
    with torch.no_grad():
        m.linear.weight.div_(m.linear.weight.norm())
    return m.linear(x)


def longer_buffer(m, x):
    m.buffer = torch.cat((m.buffer, m.buffer))
    return m.linear(x)


def created_buffer(m, x):
    if m.later is None:
        m.later = x.mean(0)
    return m.linear(x)


class Reversed(torch.autograd.Function):
    """As reversible blocks are often written: gradients of weights are left by an inner `backward`."""

    @staticmethod
    def forward(ctx, x, needs, m):
        ctx.save_for_backward(x)
        ctx.m = m
        return m.linear(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            ctx.m.linear(ctx.saved_tensors[0]).backward(gradient)
        return None, torch.zeros_like(ctx.m.linear.bias), None


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 2, max_norm=1.0)

    def forward(self, x):
        return self.table(x[:, 0].long().abs() % 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (closure_over_weight, "parameter linear.weight through a reference in a closure"),
        (bound_weight, "parameter linear.weight through a reference in a closure"),
        (closure_over_buffer, "changes its buffer buffer through a reference"),
        (lambda: Model(lambda m, x: m.linear(m.hidden[0](x)), hidden=[nn.Linear(3, 3)]), r"nn.ParameterList or nn.Mod"),
        (lambda: Model(lambda m, x: m.linear(x) * m.scale, scale=torch.ones(2, requires_grad=True)), r"float32 \[2\]"),
        (lambda: Model(lambda m, x: x), "depends on none of its trained parameters"),
        (lambda: Model(assigned_weight), "assigns or deletes its parameter linear.weight"),
        (lambda: Model(clipped), "edits its parameter linear.weight in place"),
        (lambda: Model(decayed), "edits its parameter linear.weight in place"),
        (lambda: Model(exchanged), "edits its parameter linear.weight in place"),
        (lambda: Model(normalised), "edits one of its parameters in place"),
        (Positions, "edits one of its parameters in place .*max_norm"),
        (
            lambda: Model(longer_buffer),
            r"buffer from float32 \[2\] on cpu into float32 \[4\] on cpu",
        ),
        (lambda: Model(created_buffer), r"later is None until its first forward\(\)"),
        (lambda: Model(lambda m, x: checkpoint(m.linear, x, use_reentrant=True)), "use_reentrant=False"),
        (lambda: Model(lambda m, x: Reversed.apply(x, m.linear.bias, m)), r"calls backward\(\) in its own backward"),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_what_would_train_wrongly_is_refused(make, sentence):
    flat = FlatModule(make())
    before = {name: tensor.clone() for name, tensor in flat.module.state_dict().items()}
    with pytest.raises(UserError, match=sentence):
        flat.check(flat.initial(), flat.initial_buffers(), INPUTS.requires_grad_() if "use_re" in sentence else INPUTS)
    if "buffer buffer" not in sentence:
        assert all(torch.equal(tensor, before[name]) for name, tensor in flat.module.state_dict().items())


def test_a_check_changes_nothing():
    model = Model(lambda m, x: np.random.rand() * F.dropout(m.linear(x)) + m.buffer.add_(1))  # noqa: NPY002
    flat = FlatModule(model)
    theta, buffers = flat.initial(), flat.initial_buffers()
    expected, state, of_numpy = theta.clone(), torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    flat.check(theta, buffers, INPUTS.detach())
    assert torch.equal(torch.get_rng_state(), state) and np.random.get_state()[2] == of_numpy  # noqa: NPY002
    assert torch.equal(theta, expected) and buffers["buffer"].tolist() == [0, 0] == model.buffer.tolist()


def test_a_check_lets_models_pass_that_differentiate_in_tensors_of_their_own():
    def energy(m, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(m.linear(x).square().sum(), x, create_graph=True)[0] + x

    flat = FlatModule(Model(energy))
    flat.check(flat.initial(), flat.initial_buffers(), INPUTS.detach())


def test_a_check_lets_models_pass_that_break_down_far_off():
    def fragile(m, x):
        y = m.linear(x)
        if not math.isfinite(y.exp().exp().sum().item()):
            raise ValueError("out of range")
        return y

    flat = FlatModule(Model(fragile))
    flat.check(0.01 * flat.initial(), flat.initial_buffers(), INPUTS.detach())


def test_an_edit_in_a_later_step_is_refused_then():
    calls = []

    def late(m, x):
        calls.append(x)
        return normalised(m, x) if len(calls) > 3 else m.linear(x)

    flat = FlatModule(Model(late))
    flat.check(flat.initial(), flat.initial_buffers(), INPUTS.detach())
    flat(flat.initial().requires_grad_(), flat.initial_buffers(), INPUTS.detach(), training=True)
    with pytest.raises(UserError, match="in place"):
        flat(flat.initial().requires_grad_(), flat.initial_buffers(), INPUTS.detach(), training=True)
