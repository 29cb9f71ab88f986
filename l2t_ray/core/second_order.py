"""Convolution and batch normalisation whose second derivatives are as cheap as their first.

The way back of a hypergradient differentiates the student's backward pass. Autograd can do that, but for the two
operations that fill a convolutional student it takes detours: the derivative of a convolution's backward pass is
built from transposed copies and from convolutions with image-sized kernels, and that of batch normalisation from some
thirty elementwise passes over the activations. Here both are written out with the kernels that the first derivative
uses already. The results are the same up to rounding; only the second derivative exists, not a third.

Inside `with SecondOrderOperators():` every `F.conv2d` and training-mode `F.batch_norm` of any module is one of these.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


class SecondOrderOperators(TorchFunctionMode):
    """Replaces the two operators by their counterparts below, for what this thread computes inside `with`.

    Attributes:
        is_mixed_only: while True, second derivatives in the operators' inputs and weights are left out. What remains
            is enough for the derivative in whatever only the gradient that enters the backward pass depends on: the
            loss's own weights. (A function of autograd's is not told which of its results the caller wants.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_mixed_only = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            return _conv2d(self, *args, **(kwargs or {}))
        if func is F.batch_norm:
            return _batch_norm(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def mixed_only(self) -> Iterator[None]:
        self.is_mixed_only = True
        try:
            yield
        finally:
            self.is_mixed_only = False


def _conv2d(
    operators: SecondOrderOperators,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4 or not weight.requires_grad:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    options = _Options(_pair(stride), _pair(padding), _pair(dilation), groups, operators)
    output = _Convolution.apply(input, weight, options)
    return output if bias is None else output + bias[:, None, None]


class _Options(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    operators: SecondOrderOperators


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _convolve(input: Tensor, weight: Tensor, options: _Options) -> Tensor:
    stride, padding, dilation, groups, _ = options
    return _aten.convolution(input, weight, None, stride, padding, dilation, False, [0, 0], groups)


def _correlate(gradient: Tensor, input: Tensor, weight: Tensor, options: _Options, mask: list[bool]) -> Any:
    """The gradients in input and weight of `<gradient, convolve(input, weight)>`, as the mask asks."""
    stride, padding, dilation, groups, _ = options
    return _aten.convolution_backward(
        gradient, input, weight, None, stride, padding, dilation, False, [0, 0], groups, [*mask, False]
    )[:2]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, options: _Options) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(input, weight)
        ctx.options = options
        return _convolve(input, weight, options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        input, weight = ctx.saved_tensors
        return *_ConvolutionBackward.apply(gradient, input, weight, ctx.options, ctx.needs_input_grad[0]), None


class _ConvolutionBackward(torch.autograd.Function):
    """`(gradient, input, weight) -> (gradient in input, gradient in weight)`: linear in each but its own."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, gradient: Tensor, input: Tensor, weight: Tensor, options: _Options, needs_input: bool
    ) -> Any:
        ctx.save_for_backward(gradient, input, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _correlate(gradient, input, weight, options, [needs_input, True])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along_input: Tensor | None, along_weight: Tensor | None) -> Any:  # pyright: ignore
        gradient, input, weight = ctx.saved_tensors
        needs_gradient, needs_input, needs_weight = ctx.needs_input_grad[:3]
        in_gradient = in_input = in_weight = None
        if needs_gradient and along_input is not None:
            in_gradient = _convolve(along_input, weight, ctx.options)
        if needs_gradient and along_weight is not None:
            along = _convolve(input, along_weight, ctx.options)
            in_gradient = along if in_gradient is None else in_gradient.add_(along)
        mask = [needs_input and along_weight is not None, needs_weight and along_input is not None]
        if any(mask) and not ctx.options.operators.is_mixed_only:
            in_input, in_weight = _correlate(
                gradient,
                input if along_input is None else along_input,
                weight if along_weight is None else along_weight,
                ctx.options,
                mask,
            )
        return in_gradient, in_input, in_weight, None, None


def _batch_norm(
    operators: SecondOrderOperators,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or not weight.requires_grad:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps, operators)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        operators: SecondOrderOperators,
    ) -> Tensor:
        output, mean, scale = _aten.native_batch_norm(
            input, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.eps, ctx.operators = eps, operators
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        input, weight, mean, scale = ctx.saved_tensors
        gradients = _BatchNormBackward.apply(gradient, input, weight, mean, scale, ctx.eps, ctx.operators)
        return *gradients, None, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """With xhat = (x - mean) s, s = 1 / std, <.> the mean over a channel's N values, gradient g and weight w:

        in x:       w s (g - <g> - xhat <g xhat>)
        in weight:  N <g xhat>
        in bias:    N <g>

    The first is symmetric in g, so its derivative in g is the same kernel again.
    """

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any,
        gradient: Tensor,
        input: Tensor,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        eps: float,
        operators: SecondOrderOperators,
    ) -> Any:
        gradients = _project(gradient, input, weight, mean, scale, eps, [True, True, True])
        ctx.save_for_backward(gradient, input, weight, mean, scale, gradients[1], gradients[2])
        ctx.eps, ctx.operators = eps, operators
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore
        ctx: Any, along_input: Tensor | None, along_weight: Tensor | None, along_bias: Tensor | None
    ) -> Any:
        """Of `P = <<v, in x>> + u in weight + t in bias`, for v, u, t the three arguments and <<.>> the sum.

        With A = N <g xhat>, B = N <v xhat>, G = N <g>, V = N <v>, S = <<v g>> - V G / N and q = s (u - w s B / N):

            in g:       w s v + q (x - mean) + t - w s V / N
            in weight:  s (S - A B / N)
            in x:       q (g - G / N) - w s^2 A / N (v - V / N) - r (x - mean),
                        r = s (w s^2 / N (S - 3 A B / N) + u s A / N)

        Each result in g and x is one combination of g, v and x with a coefficient a channel: at most three passes.
        """
        gradient, input, weight, mean, scale, A, G = ctx.saved_tensors
        channels = (1, -1) + (1,) * (input.ndim - 2)
        N = input.numel() // input.shape[1]
        v = torch.zeros_like(input) if along_input is None else along_input
        u = torch.zeros_like(scale) if along_weight is None else along_weight
        t = torch.zeros_like(scale) if along_bias is None else along_bias
        _, B, V = _project(v, input, weight, mean, scale, ctx.eps, [False, True, True])
        slope = weight * scale
        slope_n = slope / N
        q = torch.addcmul(u, slope_n, B, value=-1).mul_(scale)
        constant = torch.addcmul(t, slope_n, V, value=-1).addcmul_(mean, q, value=-1)
        in_gradient = torch.addcmul(constant.view(channels), input, q.view(channels))
        in_gradient.addcmul_(v, slope.view(channels))
        if ctx.operators.is_mixed_only:
            return in_gradient, None, None, None, None, None, None

        S = torch.addcmul(_channel_sums(v, gradient), V, G, value=-1 / N)
        AB = A * B
        in_weight = torch.add(S, AB, alpha=-1 / N).mul_(scale)
        slope_n.mul_(scale)
        by_v = slope_n * A
        r = torch.add(S, AB, alpha=-3 / N).mul_(slope_n).addcmul_(u * scale, A, value=1 / N).mul_(scale)
        constant = (mean * r).addcmul_(by_v, V, value=1 / N).addcmul_(q, G, value=-1 / N)
        in_input = torch.addcmul(constant.view(channels), input, r.view(channels), value=-1)
        in_input.addcmul_(gradient, q.view(channels)).addcmul_(v, by_v.view(channels), value=-1)
        return in_gradient, in_input, in_weight, None, None, None, None


def _project(
    gradient: Tensor, input: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, mask: list[bool]
) -> Any:
    """The gradients in x, weight and bias, as the mask asks."""
    return _aten.native_batch_norm_backward(gradient, input, weight, None, None, mean, scale, True, eps, mask)


def _channel_sums(first: Tensor, second: Tensor) -> Tensor:
    """The sum over a channel of the product of two activations."""
    return (first * second).sum(dim=[0, *range(2, first.ndim)])
