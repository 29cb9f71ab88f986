"""Leaving a saddle: at what rate, and after how many steps.

Near a strict saddle the distance along the escaping direction is multiplied by `lambda_max(M^-1 G)` a step, so its
logarithm grows along a line, and the number of steps from `r_0` to `R` is about `log(R / r_0) / log lambda_max`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.theory.alternating import iteration_matrix
from l2t_ray.theory.growth_bound import is_real

DescentStep = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]
"""One step of a descent, from many points at once."""


class EscapeMode(NamedTuple):
    """The fastest growing direction at a saddle, seen by the functional that measures it.

    `left` is the left eigenvector of `M^-1 G`: `left @ (u - u*)` is multiplied by exactly `factor` a step, in the
    linearisation, from the first step on. The distance itself is not: the directions of `M^-1 G` are not orthogonal.
    """

    factor: float
    left: Float[Tensor, " d"]


def escape_mode(hessian: Float[Tensor, "d d"], eta: float, *, split: int) -> EscapeMode:
    """The largest real eigenvalue of `M^-1 G` and its left eigenvector, of norm 1."""
    values, vectors = torch.linalg.eig(iteration_matrix(hessian, eta, split=split).T)
    index = values.real.where(is_real(values), -torch.inf).argmax()
    left = vectors[:, index].real
    return EscapeMode(values[index].real.item(), left / left.norm())


def random_starts(
    center: Float[Tensor, " d"], num: int, *, radius: float, generator: torch.Generator
) -> Float[Tensor, "num d"]:
    """Points uniform on the sphere of `radius` around `center`."""
    directions = torch.randn(num, len(center), dtype=center.dtype, generator=generator)
    return center + radius * directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)


def escape_times(
    step: DescentStep, starts: Float[Tensor, "n d"], center: Float[Tensor, " d"], *, radius: float, max_steps: int
) -> Int[Tensor, " n"]:
    """How many steps take each point farther than `radius` from `center`; -1 where `max_steps` were too few.

    A point that is out stays where it is: an unbounded function would soon send it to infinity.
    """
    times = torch.full((len(starts),), -1)
    points = starts
    for index in range(max_steps + 1):
        is_out = torch.linalg.vector_norm(points - center, dim=1) > radius
        times[is_out & (times < 0)] = index
        if is_out.all():
            break
        points = torch.where(is_out[:, None], points, step(points))
    return times


def predicted_escape_time(factor: Float[Tensor, "*n"] | float, *, start_radius: float, radius: float) -> Tensor:
    """`log(R / r_0) / log(factor)`: steps to grow from `start_radius` to `radius`; infinite for a factor of 1."""
    return math.log(radius / start_radius) / torch.as_tensor(factor, dtype=torch.float64).log()


def log_slope(distances: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """The least-squares slope of the natural logarithm of each column against the step number."""
    logs = distances.log()
    steps = torch.arange(len(logs), dtype=logs.dtype)
    steps = steps - steps.mean()
    return (steps[:, None] * logs).sum(dim=0) / steps.square().sum()
