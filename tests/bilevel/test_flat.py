"""A module called with its parameters as one flat vector, against the module itself."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from l2t_ray.bilevel.flat import FlatModule, clone_buffers, recomputed_blocks


def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def inputs(seed=0):
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_initial_lists_the_parameters_in_order():
    net = module()
    flat = FlatModule(net)
    expected = [value for p in net.parameters() for value in p.detach().flatten().tolist()]
    assert flat.initial().tolist() == expected
    assert flat.num_parameters == len(expected) == 3 * 4 + 4 + 4 + 4 + 4 * 2


def test_views_share_memory_and_undo_initial():
    net = module()
    theta = FlatModule(net).initial()
    views = FlatModule(net).views(theta)
    assert list(views) == [name for name, _ in net.named_parameters()]
    for name, p in net.named_parameters():
        assert torch.equal(views[name], p)
    views["0.bias"].zero_()
    assert theta[12:16].tolist() == [0.0] * 4


def test_call_equals_the_module_with_those_weights():
    net = module()
    flat = FlatModule(copy.deepcopy(net))
    theta = flat.initial() * 1.5
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    for training in (True, False, True):  # the mode must be set each time, not only once
        buffers = flat.initial_buffers()
        expected = copy.deepcopy(net).train(training)(inputs())
        torch.testing.assert_close(flat(theta, buffers, inputs(), training=training), expected)


def test_call_moves_only_the_buffers_it_was_given_and_only_in_training():
    flat = FlatModule(module())
    theta, buffers = flat.initial(), flat.initial_buffers()
    flat(theta, buffers, inputs(), training=False)
    assert all(torch.equal(buffers[name], b) for name, b in flat.initial_buffers().items())
    flat(theta, buffers, inputs(), training=True)
    hidden = flat.module[0](inputs())
    # torch's rule with momentum 0.1, from mean 0 and variance 1
    torch.testing.assert_close(buffers["1.running_mean"], 0.1 * hidden.mean(0).detach())
    torch.testing.assert_close(buffers["1.running_var"], 0.9 + 0.1 * hidden.var(0).detach())
    assert buffers["1.num_batches_tracked"] == 1
    assert flat.initial_buffers()["1.num_batches_tracked"] == 0


def test_call_is_differentiable_and_leaves_the_template_alone():
    flat = FlatModule(module())
    before = flat.initial()
    theta = (before * 2).requires_grad_()
    (gradient,) = torch.autograd.grad(flat(theta, flat.initial_buffers(), inputs(), training=True).sum(), theta)
    assert gradient.shape == theta.shape and gradient.norm() > 0
    assert torch.equal(flat.initial(), before)
    assert all(p.grad is None for p in flat.module.parameters())


def test_initial_is_a_copy_even_of_a_single_parameter():
    flat = FlatModule(nn.Linear(2, 2, bias=False))
    flat.initial().zero_()
    assert flat.initial().norm() > 0


def test_load_hands_the_module_out_with_these_weights():
    flat = FlatModule(module())
    theta, buffers = flat.initial() + 1, flat.initial_buffers()
    flat(theta, buffers, inputs(), training=True)
    expected = flat(theta, buffers, inputs(1), training=False)
    loaded = flat.load(theta, buffers)
    torch.testing.assert_close(loaded.eval()(inputs(1)), expected)


def test_tied_weights_are_all_in_place():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    flat = FlatModule(net)
    theta = flat.initial() * 2
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    expected = net(inputs().float())
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    torch.testing.assert_close(flat(theta, {}, inputs().float(), training=True), expected)


def test_the_template_is_back_in_place_after_an_error():
    flat = FlatModule(module())
    before = dict(flat.module.named_parameters())
    with pytest.raises(RuntimeError):
        flat(flat.initial(), flat.initial_buffers(), torch.zeros(2, 99).double(), training=True)
    assert all(p is before[name] for name, p in flat.module.named_parameters())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.norm(self.linear(x)).tanh()


def test_recomputed_blocks_give_the_same_derivative_with_less_kept():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(*[Residual() for _ in range(4)], nn.Linear(3, 2)).double()
    flat = FlatModule(net)

    def gradient(theta):
        kept = []

        def note(tensor):
            kept.append(tensor.nbytes)
            return tensor

        theta = theta.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = flat(theta, flat.initial_buffers(), inputs(), training=True).square().sum()
        return torch.autograd.grad(output, theta)[0], sum(kept)

    theta = flat.initial() * 1.3  # not the template's: the second forward pass must not see those
    expected, all_bytes = gradient(theta.clone())
    with recomputed_blocks():
        actual, kept_bytes = gradient(theta.clone())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert kept_bytes < all_bytes / 2
    assert [block.calls for block in net[:4]] == [3] * 4  # once, and twice
    assert all("forward" not in vars(block) for block in net)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.unused = nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3)

    def forward(self, x, gate, scale=1.0):
        return x + scale * gate * self.drop(self.linear(x)).tanh()


class Gates(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x, x.sigmoid(), scale=2.0)
        return self.blocks[1](x, x.sigmoid())


class Dropped(Gated):
    """Leaves some of itself out, by a draw of NumPy's. (The type checker of these tests draws from Python's.)"""

    def forward(self, *args, **kwargs):
        kept = np.random.rand()  # noqa: NPY002
        return kept * super().forward(*args, **kwargs)


@pytest.mark.parametrize("block", [Gated, Dropped])
def test_recomputed_blocks_draw_as_before_and_take_what_modules_take(block):
    net = Gates(block).double()
    flat = FlatModule(net)

    def gradient():
        theta = flat.initial().requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002
            output = flat(theta, {}, inputs(), training=True).square().sum()
            return torch.autograd.grad(output, theta)[0]

    expected = gradient()
    with recomputed_blocks():
        actual = gradient()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


class Watched(Residual):
    """Notes what it was given, without keeping it."""

    def forward(self, x):
        self.given = weakref.ref(x)
        return super().forward(x)


def test_inputs_of_recomputed_blocks_die_when_they_are_used():
    net = nn.Sequential(*[Watched() for _ in range(3)]).double()
    flat = FlatModule(net)
    theta = flat.initial().requires_grad_()
    with recomputed_blocks():
        output = flat(theta, flat.initial_buffers(), inputs(), training=True).square().sum()
    given = [block.given for block in net]
    assert all(tensor() is not None for tensor in given[1:])  # of the first, nobody else holds the input
    torch.autograd.grad(output, theta)
    assert all(tensor() is None for tensor in given[1:]), "the graph, which `output` still holds, keeps them"


def test_blocks_that_say_so_are_recomputed_in_place_of_the_members_of_a_sequence():
    class Marked(Residual):
        is_recomputed = True

    blocks = [Residual(), Marked()]
    flat = FlatModule(nn.Sequential(*blocks).double())
    theta = flat.initial().requires_grad_()
    with recomputed_blocks():
        output = flat(theta, flat.initial_buffers(), inputs(), training=True).square().sum()
    torch.autograd.grad(output, theta)
    assert [block.calls for block in blocks] == [1, 2]


def test_clone_buffers_copies():
    buffers = {"a": torch.ones(2)}
    copied = clone_buffers(buffers)
    copied["a"].zero_()
    assert buffers["a"].tolist() == [1.0, 1.0]


def test_frozen_parameters_are_constants_that_travel_with_the_buffers():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    flat = FlatModule(module)
    theta, buffers = flat.initial(), flat.initial_buffers()
    assert flat.num_parameters == theta.numel() == 4 + 4 + 8 + 2
    assert {"0.weight", "0.bias"} < buffers.keys()

    doubled = {**buffers, "0.weight": 2 * buffers["0.weight"]}
    inputs = torch.randn(5, 3)
    assert not torch.equal(flat(theta, buffers, inputs, training=True), flat(theta, doubled, inputs, training=True))

    loaded = flat.load(2 * theta, doubled)
    torch.testing.assert_close(loaded[0].weight, doubled["0.weight"])
    torch.testing.assert_close(flat.initial(), 2 * theta)


def test_tied_parameters_are_trained_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    flat = FlatModule(Tied())
    theta, inputs = flat.initial(), torch.randn(4, 3)
    assert theta.numel() == 9 + 3 + 3
    weight, first_bias, second_bias = (2 * theta).split((9, 3, 3))
    expected = (inputs @ weight.view(3, 3).T + first_bias) @ weight.view(3, 3).T + second_bias
    torch.testing.assert_close(flat(2 * theta, {}, inputs, training=True), expected)


class Doubling(nn.Module):
    """Looks its weight up on the way back, through `hook`, and again when that is differentiated."""

    def __init__(self, hook=None):
        super().__init__()
        self.weight, self.hook = nn.Parameter(torch.ones(3).double()), hook

    def forward(self, x):
        y = x * self.weight
        y.register_hook(self.hook or (lambda gradient: gradient * self.weight))
        return y


def test_hooks_find_the_weights_of_their_call_however_late_and_twice_differentiated():
    flat = FlatModule(Doubling())
    weights = [torch.tensor([2.0, 3.0, 4.0]).double().requires_grad_(), torch.tensor([5.0, 6.0, 7.0]).double()]
    x = inputs()
    output = flat(weights[0], {}, x, training=True)
    flat(weights[1].requires_grad_(), {}, x, training=True)  # another call in between
    (gradient,) = torch.autograd.grad(output.sum(), weights[0], create_graph=True)
    torch.testing.assert_close(gradient, x.sum(0) * weights[0])
    flat(weights[1], {}, x, training=True)
    (second,) = torch.autograd.grad(gradient.sum(), weights[0])
    torch.testing.assert_close(second, x.sum(0))


def test_the_template_is_back_in_place_after_a_way_back_and_after_one_that_failed():
    def hook(gradient):
        seen.append(flat.module.weight)
        if len(seen) > 1:
            raise ValueError("no")

    seen = []
    flat = FlatModule(Doubling(hook))
    own, theta = flat.module.weight, flat.initial().requires_grad_()
    torch.autograd.grad(flat(theta, {}, inputs(), training=True).sum(), theta)
    assert seen[0] is not own and flat.module.weight is own
    with pytest.raises(ValueError):
        torch.autograd.grad(flat(theta, {}, inputs(), training=True).sum(), theta)
    flat.initial()
    assert flat.module.weight is own


def test_a_call_is_forgotten_with_its_graph():
    flat = FlatModule(module())
    gc.collect()
    gc.disable()  # no cycle, which would keep each step's graph until somebody looks for it
    try:
        theta = flat.initial().requires_grad_()
        output = flat(theta, flat.initial_buffers(), inputs(), training=True)
        (gradient,) = torch.autograd.grad(output.square().sum(), theta, create_graph=True)
        torch.autograd.grad(gradient.sum(), theta)
        gone = weakref.ref(theta)
        del theta, output, gradient
        assert gone() is None
    finally:
        gc.enable()


class Assigning(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(3).double())

    def forward(self, x):
        y = x * self.mean
        self.mean = 0.5 * self.mean + x.mean(0)
        return y * nn.functional.normalize(self.mean, dim=0)


def test_buffers_that_are_assigned_anew_move_without_a_graph_and_without_touching_the_old_ones():
    flat = FlatModule(nn.Sequential(nn.Linear(3, 3).double(), Assigning()))
    theta, buffers = flat.initial().requires_grad_(), flat.initial_buffers()
    old = buffers["1.mean"]
    output = flat(theta, buffers, inputs(), training=True)
    torch.autograd.grad(output.sum(), theta)  # which needs the old ones
    expected = 0.5 + flat.module[0](inputs()).mean(0).detach()
    torch.testing.assert_close(buffers["1.mean"], expected)
    assert not buffers["1.mean"].requires_grad and old.tolist() == [1, 1, 1]
    assert flat.module[1].mean.tolist() == [1, 1, 1]


def test_checkpoints_have_right_derivatives_of_both_orders_and_move_running_statistics_once():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = module()

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    def derivatives(flat):
        theta, buffers = (1.3 * flat.initial()).requires_grad_(), flat.initial_buffers()  # not the template's
        output = flat(theta, buffers, inputs(), training=True).sum()  # linear: no second derivative at the output
        (gradient,) = torch.autograd.grad(output, theta, create_graph=True)
        flat(theta.detach(), flat.initial_buffers(), inputs(), training=False)
        (second,) = torch.autograd.grad(gradient.square().sum(), theta)
        return gradient, second, list(buffers.values())

    torch.testing.assert_close(derivatives(FlatModule(Checkpointed())), derivatives(FlatModule(module())))


def test_recomputed_blocks_find_the_buffers_that_they_found_before():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.Identity()
            self.register_buffer("mean", torch.ones(3))

        def forward(self, x):
            y = self.linear(x)
            with torch.no_grad():
                self.mean.lerp_(y.mean(0), 0.5)
            return y * self.mean.clone()

    flat = FlatModule(nn.Sequential(Moving(), Moving()).double())

    def gradient():
        theta, buffers = flat.initial().requires_grad_(), flat.initial_buffers()
        output = flat(theta, buffers, inputs(), training=True).square().sum()
        return torch.autograd.grad(output, theta)[0], buffers

    expected, moved = gradient()
    with recomputed_blocks():
        actual, moved_again = gradient()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    for name, tensor in moved.items():
        torch.testing.assert_close(moved_again[name], tensor)


def test_a_frozen_batch_norm_stays_frozen_and_the_owner_finds_the_modes_as_they_were():
    net = module()
    net[1].eval()
    flat = FlatModule(net)
    theta, buffers = flat.initial().requires_grad_(), flat.initial_buffers()
    for training in (True, False, True):
        flat(theta, buffers, inputs(), training=training)
        assert [part.training for part in net.modules()] == [True, True, False, True, True]
    assert all(torch.equal(buffers[name], tensor) for name, tensor in flat.initial_buffers().items())


def test_a_copy_has_places_and_modes_of_its_own():
    flat = FlatModule(module())
    copied = copy.deepcopy(flat)
    theta, buffers = 2 * flat.initial(), flat.initial_buffers()
    expected = flat(theta, clone_buffers(buffers), inputs(), training=False)
    torch.testing.assert_close(copied(theta, clone_buffers(buffers), inputs(), training=False), expected)
    assert copied.module is not flat.module
