"""Conclusion 1, the sharp bound and `M u+ = G u` on many random Hessians at once.

Nothing loops over Hessians: those of equal block sizes form one batch, and each meets every step size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from l2t_ray.theory.alternating import identity_error
from l2t_ray.theory.growth_bound import (
    bound_of_conclusion_1,
    is_real,
    largest_real_eigenvalue,
    negative_curvature,
    sharp_bound,
    spectrum,
)
from l2t_ray.theory.smoothness import hessian_smoothness

BLOCK_SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (3, 3), (2, 6), (4, 4))

# Decades of eta C_max below the step-size condition eta <= 1 / C_max, and one decade beyond it.
STEP_SIZE_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0)

# The sharp bound is an equality for decoupled blocks, so an eigenvalue may lie a rounding error below it:
# 1e-13 allows some hundreds of float64 ulps of ||M^-1 G||, which is at most (1 + 2 eta C_max)^2.
ROUNDING = 1e-13


class HessianChecks(NamedTuple):
    """One entry for each pair of a Hessian and a step size."""

    eta_c_max: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]  # (lambda_max - 1) / (eta gamma): the sharp bound says at least 1
    c_ratio: Float[Tensor, " n"]  # C / C_max, in [1, 2]
    is_complex: Bool[Tensor, " n"]  # the spectrum of M^-1 G is not real
    violates_conclusion_1: Bool[Tensor, " n"]
    violates_sharp_bound: Bool[Tensor, " n"]
    identity_error: Float[Tensor, " n"]


def random_saddle_hessians(
    num: int, block_sizes: tuple[int, int], *, generator: torch.Generator
) -> Float[Tensor, "num d d"]:
    """Random symmetric matrices with at least one negative eigenvalue.

    Gaussian entries; the coupling between the blocks is scaled by a factor from 0.01 to 10 and the whole by one from
    0.001 to 1000, both log-uniform, so that nearly decoupled and mostly coupled Hessians both occur. A positive
    semi-definite draw has its sign flipped: bounds on escape say nothing about minima.
    """
    split, size = block_sizes[0], sum(block_sizes)
    entries = torch.randn(num, size, size, dtype=torch.float64, generator=generator)
    exponents = torch.rand(num, 2, dtype=torch.float64, generator=generator)
    hessian = (entries + entries.mT) / 2
    coupling = (10 ** (3 * exponents[:, 0] - 2))[:, None, None]
    hessian[:, :split, split:] *= coupling
    hessian[:, split:, :split] *= coupling
    hessian *= (10 ** (6 * exponents[:, 1] - 3))[:, None, None]
    return hessian.where((negative_curvature(hessian) > 0)[:, None, None], -hessian)


def check_hessians(
    hessian: Float[Tensor, "n d d"], eta_c_max: Float[Tensor, " n"], u: Float[Tensor, "n d"], *, split: int
) -> HessianChecks:
    """Checks Conclusion 1, the sharp bound and the identity, each Hessian with its own `eta C_max` and point `u`."""
    smoothness = hessian_smoothness(hessian, split=split)
    gamma = negative_curvature(hessian)
    eta = eta_c_max / smoothness.c_max
    eigenvalues = spectrum(hessian, eta, split=split)
    largest = largest_real_eigenvalue(eigenvalues)
    rounding = ROUNDING * (1 + 2 * eta_c_max) ** 2
    return HessianChecks(
        eta_c_max=eta_c_max,
        gain=(largest - 1) / (eta * gamma),
        c_ratio=smoothness.c / smoothness.c_max,
        is_complex=~is_real(eigenvalues).all(dim=-1),
        violates_conclusion_1=~(largest > bound_of_conclusion_1(gamma, smoothness, eta)),
        violates_sharp_bound=~(largest >= sharp_bound(gamma, eta) - rounding),
        identity_error=identity_error(hessian, u, eta, split=split),
    )


def check_random_hessians(num_hessians: int, *, seed: int) -> Iterator[tuple[tuple[int, int], HessianChecks]]:
    """Draws `num_hessians` in all, divided over `BLOCK_SIZES`, and yields the checks of one pair of sizes at a time.

    Each Hessian is tried at one log-uniform step size from each interval of `STEP_SIZE_EDGES`, the last reaching ten
    times beyond the step-size condition.
    """
    generator = torch.Generator().manual_seed(seed)
    edges = torch.tensor(STEP_SIZE_EDGES, dtype=torch.float64).log()
    num_sizes = len(BLOCK_SIZES)
    for index, block_sizes in enumerate(BLOCK_SIZES):
        num = num_hessians // num_sizes + (index < num_hessians % num_sizes)
        hessian = random_saddle_hessians(num, block_sizes, generator=generator)
        position = torch.rand(num, len(edges) - 1, dtype=torch.float64, generator=generator)
        eta_c_max = (edges[:-1] + position * edges.diff()).exp().flatten()
        repeated = hessian.repeat_interleave(len(edges) - 1, dim=0)
        u = torch.randn(repeated.shape[:2], dtype=torch.float64, generator=generator)
        yield block_sizes, check_hessians(repeated, eta_c_max, u, split=block_sizes[0])
