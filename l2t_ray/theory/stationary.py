"""Finds stationary points of any kind, saddles included, which descent would run away from."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from l2t_ray.theory.alternating import Function, hessian_of

# float64 gradients of order 1 cannot be made much smaller; at this norm a saddle is a saddle to 12 digits.
STATIONARY = 1e-11
FIRST_DAMPING = 1.0
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e8


class StationaryPoint(NamedTuple):
    point: Float[Tensor, " d"]
    gradient_norm: float

    @property
    def is_stationary(self) -> bool:
        return self.gradient_norm < STATIONARY


def find_stationary_point(function: Function, start: Float[Tensor, " d"], *, max_steps: int = 60) -> StationaryPoint:
    """Levenberg-Marquardt on `||grad e||^2`: goes to the stationary points near `start`, whatever their curvature.

    May end where the gradient's norm has a minimum that is not zero; ask `is_stationary`.
    """
    gradient_of, curvature_of = grad(function), hessian_of(function)
    point, damping = start, FIRST_DAMPING
    gradient = gradient_of(point)
    identity = torch.eye(len(start), dtype=start.dtype)
    for _ in range(max_steps):
        hessian = curvature_of(point)
        while damping < MOST_DAMPING:
            trial = point - torch.linalg.solve(hessian @ hessian + damping * identity, hessian @ gradient)
            trial_gradient = gradient_of(trial)
            if trial_gradient.norm() < gradient.norm():
                break
            damping *= 4
        else:
            break
        point, gradient, damping = trial, trial_gradient, max(damping / 5, LEAST_DAMPING)
        if gradient.norm() < STATIONARY / 10:
            break
    return StationaryPoint(point, gradient.norm().item())
