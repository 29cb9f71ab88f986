"""A student and a loss network small enough for exact Hessians, and the validation error as a function of both.

The supplement's proof needs two blocks that descend one function `e`. Two such functions can be made of a student
`theta` and a loss network `phi`, with `theta_K(theta, phi)` the student after K steps on the learned loss:

- the *joint error* `(theta, phi) -> e(theta_K(theta, phi))`, blocks student | loss network;
- the *loss network's error* `phi -> e(theta_K(theta_0, phi))`, blocks first layer | last layer.

L2T-DLN itself descends neither: its student descends the learned loss (see `different_objectives`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.theory.alternating import Function
from l2t_ray.theory.growth_bound import negative_curvature
from l2t_ray.theory.saddles import Saddle
from l2t_ray.theory.stationary import find_stationary_point

# Less curvature than this is left out: its escape would take thousands of steps to watch.
LEAST_CURVATURE = 0.02


@dataclass(frozen=True)
class LossNetworkPair:
    """Student `logits = W_2 tanh(W_1 x)` without biases, and a loss network small enough for exact Hessians.

    Attributes:
        loss_network: gives the architecture; its own weights are not used.
        num_steps: K, the student steps that the loss network sees.
        rate: alpha, the student's step size.
    """

    train_inputs: Float[Tensor, "n i"]
    train_labels: Int[Tensor, " n"]
    val_inputs: Float[Tensor, "v i"]
    val_labels: Int[Tensor, " v"]
    num_classes: int
    loss_network: DynamicLossNetwork
    student_hidden: int = 3
    num_steps: int = 4
    rate: float = 1.0

    @property
    def num_theta(self) -> int:
        return self.student_hidden * (self.train_inputs.shape[1] + self.num_classes)

    @property
    def num_phi(self) -> int:
        return self.loss_network.spec.num_weights

    @property
    def first_layer_of_loss(self) -> int:
        """The number of weights in the loss network's first layer."""
        rows, columns = self.loss_network.spec.parts.network.shapes[0]
        return rows * columns

    def logits(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, "n i"]) -> Float[Tensor, "n c"]:
        cut = self.student_hidden * inputs.shape[1]
        w_1, w_2 = theta[:cut].view(self.student_hidden, -1), theta[cut:].view(self.num_classes, -1)
        return torch.tanh(inputs @ w_1.T) @ w_2.T

    def learned_loss(self, theta: Float[Tensor, " p"], phi: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """`L_phi(theta)`: the loss network's mean over the training rows."""
        return self.loss_network.losses_at(phi, self.logits(theta, self.train_inputs), self.train_labels).mean()

    def validation_error(self, theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        """`e(theta)`: cross-entropy on the validation rows."""
        return F.cross_entropy(self.logits(theta, self.val_inputs), self.val_labels)

    def unroll(self, theta: Float[Tensor, " p"], phi: Float[Tensor, " m"]) -> Float[Tensor, " p"]:
        """`theta_K`: the student after K gradient steps on the learned loss."""
        for _ in range(self.num_steps):
            theta = theta - self.rate * grad(self.learned_loss)(theta, phi)
        return theta

    def joint_error(self, u: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        """`e(theta_K(theta, phi))` of `u = (theta, phi)`."""
        return self.validation_error(self.unroll(u[: self.num_theta], u[self.num_theta :]))


class FoundSaddles(NamedTuple):
    saddles: list[Saddle]
    num_starts: int
    num_stationary: int


def blobs_pair(*, generator: torch.Generator) -> LossNetworkPair:
    """A pair on three overlapping clouds of points in the plane, 24 rows to train on and 30 to validate."""
    centers = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.8, -1.3]], dtype=torch.float64)

    def draw(num: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(num) % len(centers)
        return centers[labels] + torch.randn(num, 2, dtype=torch.float64, generator=generator), labels

    # SiLU, for with LeakyReLU the errors are not twice differentiable, and the claims under test speak of Hessians.
    loss_network = DynamicLossNetwork(hidden=4, layers=2, activation="silu")
    return LossNetworkPair(*draw(24), *draw(30), num_classes=len(centers), loss_network=loss_network)


def joint_saddles(pair: LossNetworkPair, *, num_starts: int, generator: torch.Generator) -> FoundSaddles:
    """Strict saddles of the joint error, searched for from random loss networks beside random students.

    Each student is first moved to a stationary point of its own error, without a loss network: the joint error is
    stationary where `theta_K` is such a point, so the search starts near its goal.
    """
    students = 0.7 * torch.randn(num_starts, pair.num_theta, dtype=torch.float64, generator=generator)
    phis = 0.5 * torch.randn(num_starts, pair.num_phi, dtype=torch.float64, generator=generator)
    moved = (find_stationary_point(pair.validation_error, student).point for student in students)
    starts = (torch.cat(start) for start in zip(moved, phis, strict=True))
    return _strict_saddles("student and loss network", pair.joint_error, starts, split=pair.num_theta)


def loss_network_saddles(pair: LossNetworkPair, *, num_starts: int, generator: torch.Generator) -> FoundSaddles:
    """Strict saddles of the loss network's error, for one random student and random loss networks."""
    theta = 0.7 * torch.randn(pair.num_theta, dtype=torch.float64, generator=generator)
    starts = 0.5 * torch.randn(num_starts, pair.num_phi, dtype=torch.float64, generator=generator)

    def function(phi: Tensor) -> Tensor:
        return pair.validation_error(pair.unroll(theta, phi))

    return _strict_saddles("loss network alone", function, starts, split=pair.first_layer_of_loss)


def _strict_saddles(name: str, function: Function, starts: Iterable[Tensor], *, split: int) -> FoundSaddles:
    saddles, num_starts, num_stationary = [], 0, 0
    for start in starts:
        num_starts += 1
        found = find_stationary_point(function, start, max_steps=25)
        if not found.is_stationary:
            continue
        num_stationary += 1
        saddle = Saddle(name, function, found.point, split)
        if negative_curvature(saddle.hessian()) > LEAST_CURVATURE:
            saddles.append(saddle)
    return FoundSaddles(saddles, num_starts, num_stationary)
