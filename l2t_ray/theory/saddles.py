"""Functions of two blocks with a known saddle, to try the claims on."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from l2t_ray.theory.alternating import Function, hessian_of
from l2t_ray.theory.stationary import find_stationary_point


class Saddle(NamedTuple):
    """A function, a stationary point of it, and where its first block ends."""

    name: str
    function: Function
    point: Float[Tensor, " d"]
    split: int

    def hessian(self) -> Float[Tensor, "d d"]:
        return hessian_of(self.function)(self.point)


def quartic(a: float = 0.2, b: float = 0.5) -> Saddle:
    """`x^4/4 - a x^2/2 + y^2/2 + b x y`: a strict saddle at 0 (if `a > 0`), bounded below, blocks x and y."""

    def function(u: Tensor) -> Tensor:
        x, y = u.unbind()
        return x**4 / 4 - a * x**2 / 2 + y**2 / 2 + b * x * y

    return Saddle("quartic", function, torch.zeros(2, dtype=torch.float64), split=1)


def quadratic(hessian: Float[Tensor, "d d"], *, split: int) -> Saddle:
    """`u' H u / 2`, whose linearisation at 0 is the function itself."""

    def function(u: Tensor) -> Tensor:
        return u @ hessian @ u / 2

    return Saddle("random quadratic", function, torch.zeros(len(hessian), dtype=torch.float64), split)


def matrix_factorisation(target: Float[Tensor, "m n"], *, rank: int) -> Saddle:
    """`||U V' - A||_F^2 / 2`, blocks U `[m, rank]` and V `[n, rank]`, at U = V = 0.

    There `H_11 = H_22 = 0`, and `gamma` is the largest singular value of A: the saddle is all coupling.
    """
    rows, columns = target.shape

    def function(u: Tensor) -> Tensor:
        left, right = u[: rows * rank].view(rows, rank), u[rows * rank :].view(columns, rank)
        return (left @ right.T - target).square().sum() / 2

    point = torch.zeros((rows + columns) * rank, dtype=torch.float64)
    return Saddle("matrix factorisation", function, point, split=rows * rank)


def two_layer_network(
    inputs: Float[Tensor, "n i"],
    targets: Float[Tensor, "n o"],
    *,
    hidden: int,
    idle: int,
    generator: torch.Generator,
    num_tries: int = 20,
) -> Saddle:
    """Half the mean squared error of `W_2 tanh(W_1 x)`, blocks W_1 and W_2, at a saddle with `idle` hidden units.

    A stationary point of the other units alone is found first, from random starts; idle units, whose weights are zero,
    leave it stationary but could lower the error. Unlike at all-zero weights, both layers curve here, and couple.

    Raises:
        ValueError: if no stationary point of the active units was found in `num_tries` tries.
    """
    num_inputs, num_outputs = inputs.shape[1], targets.shape[1]

    def error(u: Tensor, units: int) -> Tensor:
        w_1 = u[: units * num_inputs].view(units, num_inputs)
        w_2 = u[units * num_inputs :].view(num_outputs, units)
        return (torch.tanh(inputs @ w_1.T) @ w_2.T - targets).square().sum(dim=1).mean() / 2

    active = hidden - idle
    cut = active * num_inputs
    starts = torch.randn(num_tries, cut + active * num_outputs, dtype=torch.float64, generator=generator)
    for start in starts:
        found = find_stationary_point(partial(error, units=active), start)
        is_active = found.point.norm() > 0.1  # all-zero weights are stationary too, and another saddle
        if found.is_stationary and is_active:
            break
    else:
        raise ValueError(f"no stationary point of {active} hidden units was found in {num_tries} tries.")
    w_1 = F.pad(found.point[:cut].view(active, num_inputs), (0, 0, 0, idle))
    w_2 = F.pad(found.point[cut:].view(num_outputs, active), (0, idle))
    point = torch.cat((w_1.flatten(), w_2.flatten()))
    return Saddle("two-layer network", partial(error, units=hidden), point, split=hidden * num_inputs)


def monkey() -> Saddle:
    """`x^3 - 3 x y^2`: a saddle at 0 whose Hessian is zero. Not strict, so nothing here promises a fast escape."""

    def function(u: Tensor) -> Tensor:
        x, y = u.unbind()
        return x**3 - 3 * x * y**2

    return Saddle("monkey (degenerate)", function, torch.zeros(2, dtype=torch.float64), split=1)


def strict_examples(*, generator: torch.Generator) -> list[Saddle]:
    """One strict saddle of each kind, random parts drawn from `generator`."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    square = normal(8, 8)
    inputs = normal(32, 2)
    targets = torch.sin(math.pi / 2 * inputs) @ normal(2, 2)
    return [
        quartic(),
        quadratic((square + square.T) / 2, split=3),
        matrix_factorisation(normal(4, 3), rank=2),
        two_layer_network(inputs, targets, hidden=3, idle=2, generator=generator),
    ]
