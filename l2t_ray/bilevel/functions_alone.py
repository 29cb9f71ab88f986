"""A model's own functions, each tried by itself: is the derivative of its backward pass there?

Where a model's gradients are not its loss's, as under a straight-through estimator, finite differences of the whole say
nothing about its other functions. One that is called by itself either has a backward pass that is another function's,
on purpose, or one that is its own: then the derivative of that can be held against differences.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2t_ray.bilevel.derivative_trial import SETTLED, TOLERANCE, DerivativeTrial

_MOST_CALLS = 20
_RADII = (1e-6, 1e-7)


class Call(NamedTuple):
    """One call of a function with a backward pass of its own."""

    function: Any
    apply: Callable[..., Any]
    arguments: tuple[Any, ...]


def without_second_derivative(trial: DerivativeTrial, nodes: Sequence[Any]) -> Any | None:
    """The first of the functions whose backward pass is right and has a derivative that autograd takes for another.

    Args:
        trial: in double precision.
        nodes: of the functions, in the graph of a loss.
    """
    functions = {node._forward_cls for node in nodes if getattr(node, "_forward_cls", None) is not None}
    with _recorded(functions) as calls:
        trial.gradients()
    for call in calls:
        with suppress(RuntimeError, TypeError, ValueError), trial.alike():  # what it cannot do alone is not known
            if _is_opaque(call):
                return call.function
    return None


@contextmanager
def _recorded(functions: set[Any]) -> Iterator[list[Call]]:
    calls: list[Call] = []
    before = {function: vars(function).get("apply") for function in functions}
    for function in functions:
        function.apply = _recorder(function, function.apply, calls)
    try:
        yield calls
    finally:
        for function, own in before.items():
            if own is None:
                del function.apply
            else:
                function.apply = own


def _recorder(function: Any, apply: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    def recorded(*arguments: Any, **more: Any) -> Any:
        if len(calls) < _MOST_CALLS and not more:
            calls.append(Call(function, apply, tuple(map(_detached, arguments))))
        return apply(*arguments, **more)

    return recorded


def _is_opaque(call: Call) -> bool:
    places = [n for n, value in enumerate(call.arguments) if isinstance(value, Tensor) and value.is_floating_point()]
    if not places:
        return False
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    ways, along = ([drawn(call.arguments[n]) for n in places] for _ in range(2))
    weight = drawn(_value(call, places, ways, 0.0)[1])

    def at(step: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The function along `weight` so far on, its gradients, and its inputs."""
        inputs, output = _value(call, places, ways, step)
        value = (output * weight).sum()
        gradients = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        return value, list(gradients), inputs

    _, gradients, inputs = at(0.0)
    slope = _product(gradients, along)
    first, second = _product(gradients, ways).detach(), torch.zeros_like(slope)
    if slope.requires_grad:
        second = _product(torch.autograd.grad(slope, inputs, allow_unused=True, materialize_grads=True), ways)
    differences = []
    for radius in _RADII:
        (value_ahead, ahead, _), (value_behind, behind, _) = at(radius), at(-radius)
        changes = value_ahead - value_behind, _product(ahead, along) - _product(behind, along)
        differences.append([change.detach() / (2 * radius) for change in changes])
    (coarse_first, coarse_second), (fine_first, fine_second) = differences
    if not _near(fine_first, first, first, TOLERANCE):
        return False  # an estimator, on purpose
    settled = _near(coarse_first, fine_first, first, SETTLED) and _near(coarse_second, fine_second, slope, SETTLED)
    return settled and not _near(fine_second, second, slope, TOLERANCE)


def _product(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(ones, others, strict=True)]).sum()


def _value(call: Call, places: Sequence[int], ways: Sequence[Tensor], step: float) -> tuple[list[Tensor], Tensor]:
    """The function's inputs, so far along the ways, and its first output."""
    arguments = list(call.arguments)
    inputs = []
    for place, way in zip(places, ways, strict=True):
        arguments[place] = (arguments[place] + step * way).detach().requires_grad_()
        inputs.append(arguments[place])
    output = call.apply(*arguments)
    outputs = [output] if isinstance(output, Tensor) else output
    return inputs, next(each for each in outputs if isinstance(each, Tensor) and each.is_floating_point())


def _near(one: Tensor, other: Tensor, floor: Tensor, tolerance: float) -> bool:
    larger = torch.maximum(torch.maximum(one.abs(), other.abs()), 1e-3 * floor.abs())
    return bool((one - other).abs() <= tolerance * larger)


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
