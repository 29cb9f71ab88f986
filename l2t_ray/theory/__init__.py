"""The convergence section of the supplement, claim by claim (docs/convergence.md); `jobs/convergence.py` runs all."""

from l2t_ray.theory.alternating import agd_matrices, alternating_step, iteration_matrix
from l2t_ray.theory.escape import escape_mode, escape_times
from l2t_ray.theory.growth_bound import bound_of_conclusion_1, largest_real_eigenvalue, sharp_bound, spectrum
from l2t_ray.theory.smoothness import estimate_smoothness, hessian_smoothness

__all__ = [
    "agd_matrices",
    "alternating_step",
    "bound_of_conclusion_1",
    "escape_mode",
    "escape_times",
    "estimate_smoothness",
    "hessian_smoothness",
    "iteration_matrix",
    "largest_real_eigenvalue",
    "sharp_bound",
    "spectrum",
]
