"""Convolution, batch normalisation and ReLU whose second derivatives are as cheap as their first.

The way back of a hypergradient differentiates the student's backward pass. Autograd can do that, but for the
operations that fill a convolutional student it takes detours: the derivative of a convolution's backward pass is
built from transposed copies and from convolutions with image-sized kernels, that of batch normalisation from some
thirty elementwise passes over the activations, and that of ReLU adds zeros to what the next layer gave. Here they are
written out with the kernels that the first derivative uses already. The results are the same up to rounding; only the
second derivative exists, not a third.

Inside `with SecondOrderOperators():` every `F.conv2d`, training-mode `F.batch_norm` and `F.relu` of any module is one
of these. An engine offers them (`offered`), and the student's forward pass puts itself inside: what else a step
computes, the loss network above all, would only pay for being looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


class TwiceDifferentiable(TorchFunctionMode):
    """Replaces operators whose second derivative is wrong in PyTorch, for what this thread computes inside `with`.

    The fused weight normalisation takes the norm for a constant when it is differentiated twice (`gradgradcheck` of
    `torch._weight_norm` fails, torch 2.11 to 2.15). It stands behind both of PyTorch's ways to normalise weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:  # pyright: ignore[reportPrivateImportUsage]
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def offered(self) -> Iterator[None]:
        """Inside, `offered_operators` gives these."""
        token = _offered.set(self)
        try:
            yield
        finally:
            _offered.reset(token)


class SecondOrderOperators(TwiceDifferentiable):
    """Replaces the operators by their counterparts below as well.

    Attributes:
        is_mixed_only: while True, second derivatives in the operators' inputs and weights are left out. What remains
            is enough for the derivative in whatever only the gradient that enters the backward pass depends on: the
            loss's own weights. (A function of autograd's is not told which of its results the caller wants.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_mixed_only = False
        self._outer_hooks: Any = None

    def __enter__(self) -> "SecondOrderOperators":
        self._outer_hooks = _saved_tensors_hooks()
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _REPLACED or self._stands_back(*args, **kwargs):
            return super().__torch_function__(func, types, args, kwargs)
        if func is F.conv2d:
            return _conv2d(self, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(self, *args, **kwargs)
        return _relu(*args, **kwargs)

    def _stands_back(self, input: Tensor, *args: Any, **kwargs: Any) -> bool:
        return torch.is_autocast_enabled(input.device.type) or _saved_tensors_hooks() != self._outer_hooks

    @contextmanager
    def mixed_only(self) -> Iterator[None]:
        self.is_mixed_only = True
        try:
            yield
        finally:
            self.is_mixed_only = False


_REPLACED = {F.conv2d, F.batch_norm, F.relu}


def _saved_tensors_hooks() -> Any:
    """The innermost hooks on what is kept for the way back, those of checkpoints among them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore


_offered: ContextVar[TwiceDifferentiable | None] = ContextVar("offered", default=None)


def offered_operators() -> TwiceDifferentiable | None:
    """The operators of an engine that will differentiate a second time what is computed now; None: there is none."""
    return _offered.get()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


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
        if not torch.is_grad_enabled():  # the second way back, which nothing differentiates: spare autograd's own cost
            return *_correlate(gradient, input, weight, ctx.options, [ctx.needs_input_grad[0], True]), None
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
        if not torch.is_grad_enabled():
            gradients = _project(gradient, input, weight, mean, scale, ctx.eps, [True, True, True])
            return *gradients, None, None, None, None, None
        gradients = _BatchNormBackward.apply(gradient, input, weight, mean, scale, ctx.eps, ctx.operators)
        return *gradients, None, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """With xhat = (x - mean) s, s = 1 / std, <.> the mean over a channel's N values, gradient g and weight w:

        in x:       h = w k,  k = s (g - <g> - xhat <g xhat>)
        in weight:  N <g xhat>
        in bias:    N <g>

    The first is symmetric in g, so its derivative in g is the same kernel again. Kept is h, which the convolution
    before keeps as well, and not g: a quarter of what a step keeps.
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
        # k = h / w must exist: a weight of zero passes for one of 1e-12, far below rounding beside any other channel.
        weight = torch.copysign(weight.abs().clamp_min_(_NO_WEIGHT), weight)
        gradients = _project(gradient, input, weight, mean, scale, eps, [True, True, True])
        ctx.save_for_backward(gradients[0], input, weight, mean, scale, gradients[1])
        ctx.eps, ctx.operators = eps, operators
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore
        ctx: Any, along_input: Tensor | None, along_weight: Tensor | None, along_bias: Tensor | None
    ) -> Any:
        """Of `P = <<v, in x>> + u in weight + t in bias`, for v, u, t the three arguments and <<.>> the sum.

        With A = N <g xhat>, B = N <v xhat>, V = N <v>, K = <<v k>> and q = s (u - w s B / N):

            in g:       w s v + q (x - mean) + t - w s V / N
            in weight:  K
            in x:       q / s k - w s^2 A / N (v - V / N) - w s^2 / N (K - s A B / N) (x - mean)

        Each result in g and x is one combination of h, v and x with a coefficient a channel: at most three passes.
        """
        h, input, weight, mean, scale, A = ctx.saved_tensors
        channels = (1, -1) + (1,) * (input.ndim - 2)
        N = input.numel() // input.shape[1]
        v = torch.zeros_like(input) if along_input is None else along_input
        u = torch.zeros_like(scale) if along_weight is None else along_weight
        t = torch.zeros_like(scale) if along_bias is None else along_bias
        _, B, V = _project(v, input, weight, mean, scale, ctx.eps, [False, True, True])
        slope = weight * scale
        slope_n = slope / N
        by_k = torch.addcmul(u, slope_n, B, value=-1)
        q = by_k * scale
        constant = torch.addcmul(t, slope_n, V, value=-1).addcmul_(mean, q, value=-1)
        in_gradient = _affine(input, q, constant).addcmul_(v, slope.view(channels))
        if ctx.operators.is_mixed_only:
            return in_gradient, None, None, None, None, None, None

        # <<v h>> by the kernel that takes sums of x g: no product is written down.
        in_weight = _project(v, h, weight, torch.zeros_like(mean), torch.ones_like(scale), 0.0, [False, True, False])[1]
        in_weight = in_weight / weight
        slope_n.mul_(scale)
        by_v = slope_n * A
        by_x = torch.addcmul(in_weight, scale * A, B, value=-1 / N).mul_(slope_n)
        constant = (mean * by_x).addcmul_(by_v, V, value=1 / N)
        in_input = _affine(input, by_x.neg_(), constant)
        in_input.addcmul_(h, (by_k / weight).view(channels)).addcmul_(v, by_v.view(channels), value=-1)
        return in_gradient, in_input, in_weight, None, None, None, None


_NO_WEIGHT = 1e-12


def _project(
    gradient: Tensor, input: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, mask: list[bool]
) -> Any:
    """The gradients in x, weight and bias, as the mask asks."""
    return _aten.native_batch_norm_backward(gradient, input, weight, None, None, mean, scale, True, eps, mask)


def _affine(input: Tensor, factor: Tensor, constant: Tensor) -> Tensor:
    """`factor * input + constant`, a factor and a constant for each channel.

    Two operands of a channel's length make torch loop over so few channels-last values at a time that it takes four
    times as long; over whole rows of an image it does not.
    """
    if input.ndim != 4 or input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        channels = (1, -1) + (1,) * (input.ndim - 2)
        return torch.addcmul(constant.view(channels), input, factor.view(channels))
    n, c, height, width = input.shape
    rows = input.permute(0, 2, 3, 1).view(n * height, width * c)
    factor, constant = (t.expand(width, c).reshape(-1) for t in (factor, constant))
    output = torch.addcmul(constant, rows, factor)
    return output.view(n, height, width, c).permute(0, 3, 1, 2)


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return _Relu.apply(input, inplace)  # pyright: ignore[reportReturnType]


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:  # pyright: ignore
        if inplace:
            ctx.mark_dirty(input)
        output = input.clamp_min_(0) if inplace else input.clamp_min(0)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        (output,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _aten.threshold_backward(gradient, output, 0), None
        return _ReluBackward.apply(gradient, output.detach()), None


class _ReluBackward(torch.autograd.Function):
    """Linear in the gradient; its own derivative in the output is zero wherever it exists."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, output: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(output)
        return _aten.threshold_backward(gradient, output, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> Any:  # pyright: ignore
        return _aten.threshold_backward(along, ctx.saved_tensors[0], 0), None
