"""What the checks of the convergence section come to, between those that measure and those that draw."""

from typing import NamedTuple

import torch
from jaxtyping import Float

from l2t_ray.theory.different_objectives import StudentGrowth
from l2t_ray.theory.escape_studies import EscapeByStart, EscapeByStepSize, GrowthAtSaddle
from l2t_ray.theory.loss_network_pair import FoundSaddles
from l2t_ray.theory.random_hessians import HessianChecks


class Findings(NamedTuple):
    """Everything that was measured, as the figures need it."""

    hessians: list[tuple[tuple[int, int], HessianChecks]]
    by_step_size: list[EscapeByStepSize]
    by_start: list[EscapeByStart]
    control_slope: float
    growth: list[GrowthAtSaddle]
    distances: dict[str, Float[torch.Tensor, " k"]]  # |P_d(u^k)| of one start, by the saddle's name
    found: list[FoundSaddles]
    found_checks: HessianChecks
    students: list[tuple[float, StudentGrowth]]  # by the scale of the loss network's weights
