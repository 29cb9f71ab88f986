"""Convolution and batch norm with cheap second derivatives, against autograd's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.bilevel.second_order import SecondOrderOperators


def draws(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(function, inputs, operators=None):
    """Value, first derivatives, and the second derivatives that a way back asks for, along fixed directions."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    if operators is None:
        output = function(*leaves)
    else:
        with operators:
            output = function(*leaves)
    cotangent = draws(*output.shape, seed=9).requires_grad_()
    first = torch.autograd.grad(output, leaves, cotangent, create_graph=True)
    directions = [draws(*g.shape, seed=20 + i) for i, g in enumerate(first)]
    second = torch.autograd.grad(first, [cotangent, *leaves], directions, allow_unused=True, materialize_grads=True)
    return [output, *first, *second]


def assert_same(function, inputs):
    expected = derivatives(function, inputs)
    actual = derivatives(function, inputs, SecondOrderOperators())
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": (1, 2), "dilation": (2, 1)}, {"groups": 2, "padding": [1]}],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_convolution(options, has_bias):
    weight = draws(6, 4 // options.get("groups", 1), 3, 3, seed=1)
    inputs = [draws(3, 4, 7, 8, seed=0), weight, *[draws(6, seed=2)] * has_bias]

    def convolution(x, w, b=None):
        return F.conv2d(x, w, b, **options).tanh()  # of something nonlinear, so that mixed terms are there

    assert_same(convolution, inputs)


def test_convolution_of_data_that_needs_no_gradient():
    images = draws(3, 2, 6, 6, seed=0)
    assert_same(lambda w: F.conv2d(images, w, padding="same").tanh(), [draws(4, 2, 3, 3, seed=1)])
    assert_same(lambda w: F.conv2d(images, w, padding=1).tanh(), [draws(4, 2, 3, 3, seed=1)])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(8, 5), (3, 5, 4, 6)])
def test_batch_norm(shape, memory_format):
    def norm(x, w, b):
        x = x.contiguous(memory_format=memory_format) if x.ndim == 4 else x
        return F.batch_norm(x, None, None, w, b, training=True).tanh()

    assert_same(norm, [draws(*shape, seed=0) * 2 + 1, draws(5, seed=1), draws(5, seed=2)])


def test_batch_norm_with_a_weight_of_zero():
    def norm(x, w, b):
        return F.batch_norm(x, None, None, w, b, training=True).tanh()

    weight = draws(5, seed=1)
    weight[1], weight[3] = 0.0, -1e-14
    assert_same(norm, [draws(3, 5, 4, 6, seed=0) * 2 + 1, weight, draws(5, seed=2)])


def test_relu():
    def twice(x, w):
        return F.relu(F.conv2d(F.relu(x), w)).square()  # of something nonlinear, so that mixed terms are there

    assert_same(twice, [draws(3, 4, 7, 8, seed=0), draws(6, 4, 3, 3, seed=1)])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_batch_norm_when_one_of_its_gradients_is_not_followed(missing):
    x, w, b = (draws(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 3, 5, 5), (3,), (3,)]))
    leaves = [x, w, b]

    def second(operators):
        with operators:
            output = F.batch_norm(x, None, None, w, b, training=True).tanh()
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        kept = [g for i, g in enumerate(first) if i != missing]
        return torch.autograd.grad(sum((g * draws(*g.shape, seed=30)).sum() for g in kept), leaves)

    for ours, theirs in zip(second(SecondOrderOperators()), second(torch.enable_grad()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_batch_norm_moves_its_running_statistics_as_torch_does():
    ours, theirs = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    x = draws(4, 3, 5, 5, seed=0)
    with SecondOrderOperators():
        output = ours(x)
    assert type(output.grad_fn).__name__ == "_BatchNormBackward"
    torch.testing.assert_close(output, theirs(x))
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)


def test_evaluation_mode_and_frozen_weights_are_left_to_torch():
    norm, convolution = nn.BatchNorm2d(3).double().eval(), nn.Conv2d(3, 2, 3).double().requires_grad_(False)
    x = draws(4, 3, 5, 5, seed=0).requires_grad_()
    with SecondOrderOperators():
        outputs = [norm(x), convolution(x), nn.BatchNorm2d(3, affine=False).double()(x)]
    for output in outputs:
        assert not type(output.grad_fn).__name__.startswith("_")


def test_mixed_only_leaves_the_derivative_along_the_cotangent_and_nothing_else():
    operators = SecondOrderOperators()
    x, w = draws(3, 4, 6, 6, seed=0).requires_grad_(), draws(4, 4, 3, 3, seed=1).requires_grad_()
    scale = draws(4, seed=2).requires_grad_()
    with operators:
        output = F.batch_norm(F.conv2d(x, w), None, None, scale, torch.zeros_like(scale), training=True)
    cotangent = draws(*output.shape, seed=3).requires_grad_()
    gradients = torch.autograd.grad(output, [x, w, scale], cotangent, create_graph=True)
    product = sum((g * draws(*g.shape, seed=4)).sum() for g in gradients)
    (whole,) = torch.autograd.grad(product, cotangent, retain_graph=True)
    with operators.mixed_only():
        (alone,) = torch.autograd.grad(product, cotangent, retain_graph=True)
    assert torch.equal(alone, whole)
    assert not operators.is_mixed_only
    torch.autograd.grad(product, [x, w, scale])  # whole again
