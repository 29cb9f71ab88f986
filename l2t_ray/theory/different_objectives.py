"""What Conclusion 1 does not cover: the student descends the learned loss, not the error that the teacher descends.

With two objectives the update is still `M u+ = G u`, but what stands in the place of the Hessian is no longer
symmetric, and the step of the proof that needs a symmetric matrix fails. Two things are shown. An explicit pair of
objectives stays at a strict saddle of `e` for ever. And a student with zero weights, a strict saddle of `e`, leaves at
the rate of the learned loss's curvature, whatever the curvature of `e`; not at all under a loss network that is zero.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from l2t_ray.theory.alternating import descent_path, hessian_of, iteration_matrix
from l2t_ray.theory.escape import log_slope, random_starts
from l2t_ray.theory.growth_bound import negative_curvature
from l2t_ray.theory.loss_network_pair import LossNetworkPair


class TwoObjectives(NamedTuple):
    """`L = theta^2 / 2 + b theta phi` for the student, `e = -gamma phi^2 / 2 - b theta phi` for the teacher."""

    error_hessian: Float[Tensor, "2 2"]
    iteration: Float[Tensor, "2 2"]  # takes (theta, phi) to the next point; the student moves first


def attracting_saddle(gamma: float, coupling: float, eta: float) -> TwoObjectives:
    """Two objectives of which the saddle at 0 has `gamma > 0` of negative curvature in `e`.

    It attracts for small `eta` when `coupling^2 > gamma` and `gamma < 1`: the gradients' Jacobian
    `[[1, b], [-b, -gamma]]` then has trace `1 - gamma > 0` and determinant `b^2 - gamma > 0`.
    """
    jacobian = torch.tensor([[1.0, coupling], [-coupling, -gamma]], dtype=torch.float64)
    error_hessian = torch.tensor([[0.0, -coupling], [-coupling, -gamma]], dtype=torch.float64)
    return TwoObjectives(error_hessian, iteration_matrix(jacobian, eta, split=1))


class StudentGrowth(NamedTuple):
    """How a nearly zero student grows under L2T-DLN's rounds. All rates are natural logarithms per student step."""

    measured: float
    of_learned_loss: float  # log(1 + alpha gamma) with gamma from the Hessian of L_phi
    of_error: float  # the same with gamma from the Hessian of e: what Conclusion 1 and the sharp bound would promise
    steps_per_round: int
    distances: Float[Tensor, " k+1"]  # of one start along the growing direction, after each round


def student_growth(
    pair: LossNetworkPair,
    phi: Float[Tensor, " m"],
    *,
    start_radius: float,
    num_rounds: int,
    teacher_rate: float,
    num_starts: int = 8,
    generator: torch.Generator,
) -> StudentGrowth:
    """Runs `theta <- theta_K(theta, phi)`, `phi <- phi - beta d e(theta_K) / d phi` from students near zero.

    With zero weights the learned loss has a saddle too (or is flat), so its least curvature is never positive.
    The growth is measured along the direction of most negative curvature of the learned loss, over all rounds: choose
    so few that the student stays near zero. A loss network of zeros moves nothing and gives a rate of 0.
    """
    at_zero = torch.zeros(pair.num_theta, dtype=phi.dtype)
    curvatures, directions = torch.linalg.eigh(hessian_of(lambda theta: pair.learned_loss(theta, phi))(at_zero))
    error_curvature = negative_curvature(hessian_of(pair.validation_error)(at_zero))
    split = pair.num_theta

    def one_round(u: Tensor) -> Tensor:
        theta, phi = u[:split], u[split:]
        moved = phi - teacher_rate * grad(lambda phi: pair.validation_error(pair.unroll(theta, phi)))(phi)
        return torch.cat((pair.unroll(theta, phi), moved))

    students = random_starts(at_zero, num_starts, radius=start_radius, generator=generator)
    start = torch.cat((students, phi.expand(num_starts, -1)), dim=1)
    path = descent_path(vmap(one_round), start, num_rounds)[..., :split]
    distances = (path @ directions[:, 0]).abs()
    return StudentGrowth(
        measured=log_slope(distances).median().item() / pair.num_steps,
        of_learned_loss=math.log1p(pair.rate * abs(curvatures[0].item())),
        of_error=math.log1p(pair.rate * error_curvature.item()),
        steps_per_round=pair.num_steps,
        distances=distances[:, 0],
    )
