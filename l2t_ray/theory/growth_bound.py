"""Conclusion 1: how fast alternating descent leaves a strict saddle, and two lower bounds on it.

Near a saddle with Hessian `H` one step multiplies the distance by `M^-1 G`. The supplement shows that its largest real
eigenvalue exceeds `1 + eta gamma / (1 + C / C_max)` (Eq. 6). More is true, with less: it is at least `1 + eta gamma`,
the factor of plain gradient descent, for every step size (docs/convergence.md has the proof).
"""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from l2t_ray.theory.alternating import iteration_matrix
from l2t_ray.theory.smoothness import Smoothness

# A double real eigenvalue may come out of the solver as a pair with imaginary parts near sqrt(float64 eps) = 1.5e-8.
REAL_TOLERANCE = 1e-6


def negative_curvature(hessian: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """`gamma = -lambda_min(H)`; positive exactly at a strict saddle (or maximum)."""
    return -torch.linalg.eigvalsh(hessian)[..., 0]


def spectrum(
    hessian: Float[Tensor, "*batch d d"], eta: float | Float[Tensor, "*batch"], *, split: int
) -> Complex[Tensor, "*batch d"]:
    """The eigenvalues of `M^-1 G`, in no particular order. They may be complex: `M^-1 G` is not symmetric."""
    return torch.linalg.eigvals(iteration_matrix(hessian, eta, split=split))


def is_real(eigenvalues: Complex[Tensor, "*batch d"]) -> Bool[Tensor, "*batch d"]:
    """Which eigenvalues are real up to rounding."""
    scale = eigenvalues.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    return eigenvalues.imag.abs() <= REAL_TOLERANCE * scale


def largest_real_eigenvalue(eigenvalues: Complex[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """The largest real eigenvalue; `-inf` where all are complex."""
    return eigenvalues.real.where(is_real(eigenvalues), -torch.inf).amax(dim=-1)


def bound_of_conclusion_1(
    gamma: Float[Tensor, "*batch"], smoothness: Smoothness, eta: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """`1 + eta gamma / (1 + C / C_max)` (Eq. 6)."""
    return 1 + eta * gamma / (1 + smoothness.c / smoothness.c_max)


def sharp_bound(gamma: Float[Tensor, "*batch"], eta: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`1 + eta gamma`: reached when the blocks decouple, and equal to the factor of plain gradient descent."""
    return 1 + eta * gamma
