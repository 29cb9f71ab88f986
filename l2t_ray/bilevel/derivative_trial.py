"""One step's derivatives taken in several ways: as the engines take them, and by central differences.

All passes see the same masks and running statistics. Nothing is changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.double import DoubleThroughout, doubled
from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.engines import APPROXIMATIONS, ENGINES, EngineName
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch, StudentState

TOLERANCE = 0.02
"""Largest relative error that passes for none. Measured (test_derivative_check.py has the modules): 80 draws of 41
kinds of healthy modules, ReLU networks, norms, recurrent ones, attention and the students here among them, at most
1e-6; spectral normalisation, whose power iteration is outside the graph, 1e-2. In single precision smooth modules
have 1e-3, and ReLU networks anything up to 1, and there differences do not settle either."""

SETTLED = 0.005
"""Differences of two neighbouring radii that are no further apart have settled."""

KEPT = 1e-3
"""Largest share of the loss's slope that may go through buffers without a word. Spectral normalisation has less."""

RADII = (1e-9, 1e-10, 1e-11, 1e-7)
"""Steps of the differences, as shares of the weights' norm, in the order in which they are tried. Rounding makes an
error of some 1e-16 / radius; a ReLU network of some million activations crosses kinks from 1e-8 on."""

COARSE_RADII = (3e-3, 1e-3, 3e-4, 1e-2, 3e-2)
"""In less than double precision."""


@dataclass(frozen=True)
class DerivativeTrial:
    """One step's derivatives in several ways, each with the same masks and running statistics."""

    problem: InnerProblem
    student: StudentState
    phi: Tensor
    batch: Batch
    seed: int
    is_double: bool = False

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Around every pass: what makes all of them see the same."""
        draws = counted_draws(self.seed + self.problem.group.rank, self.student.theta.device)
        with draws, DoubleThroughout() if self.is_double else nullcontext():
            yield

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student.theta.detach().requires_grad_(), self.phi.detach().requires_grad_()

    def loss(self, theta: Tensor, phi: Tensor) -> Tensor:
        return self.problem.inner_loss(theta, phi, clone_buffers(self.student.buffers), self.batch)[0]

    def gradients(self, theta_step: Tensor | float = 0.0, phi_step: Tensor | float = 0.0) -> tuple[Tensor, ...]:
        """The loss's gradients in theta and phi, and the loss: of all workers."""
        return self._summed(*self._own_gradients(theta_step, phi_step))

    def _own_gradients(self, theta_step: Tensor | float = 0.0, phi_step: Tensor | float = 0.0) -> tuple[Tensor, ...]:
        theta = (self.student.theta + theta_step).detach().requires_grad_()
        phi = (self.phi + phi_step).detach().requires_grad_()
        with self.alike():
            loss = self.loss(theta, phi)
            found = torch.autograd.grad(loss, (theta, phi), allow_unused=True, materialize_grads=True)
        return *found, loss.detach()

    def products(self, direction: Tensor, engine: EngineName = "store") -> tuple[Tensor, ...]:
        """`H v` and `M v` as the engine takes them: of all workers."""
        tape = (ENGINES | APPROXIMATIONS)[engine](self.problem, self.phi, 1)
        with self.alike():
            tape.gradient(self.student.theta, clone_buffers(self.student.buffers), self.batch)
            products = tape.products(direction.to(self.student.theta))
        return self._summed(*products)

    def buffers_after(self, theta_step: Tensor | float = 0.0) -> dict[str, Tensor]:
        """What a pass at shifted weights leaves in the buffers."""
        buffers = clone_buffers(self.student.buffers)
        with self.alike():
            self.problem.inner_loss((self.student.theta + theta_step).detach(), self.phi, buffers, self.batch)
        return buffers

    def loss_with(self, buffers: Mapping[str, Tensor]) -> Tensor:
        """The loss of all workers with other buffers."""
        with self.alike():
            loss = self.problem.inner_loss(self.student.theta, self.phi, clone_buffers(buffers), self.batch)[0]
        return self.problem.group.sum(loss.detach().reshape(1).clone())[0]

    def in_double(self) -> "tuple[DerivativeTrial, tuple[Tensor, ...]]":
        """The same in double precision, where the model can be run in it by all workers, else as it is; and its
        gradients."""
        student = StudentState(*map(doubled, self.student))
        batch = Batch(*map(doubled, self.batch))
        trial = replace(self, student=student, phi=doubled(self.phi), batch=batch, is_double=True)
        try:
            found = trial._own_gradients()
        except Exception:  # whatever a model says of numbers that it was not made for
            found = None
        num_failed = self.problem.group.sum(self.phi.new_tensor(float(found is None)))
        if found is None or num_failed > 0:  # somebody's batch may hold what others' do not
            return self, self.gradients()
        return trial, trial._summed(*found)

    def _summed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        total = self.problem.group.sum(torch.cat([t.reshape(-1) for t in tensors]))
        pieces = total.split([t.numel() for t in tensors])
        return tuple(piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True))


def direction_for(gradient: Tensor, seed: int) -> Float[Tensor, " p"]:
    """A unit vector, half of it along the gradient, where a co-state has much of itself, half anywhere."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.device)
    along = gradient.double()
    direction = anywhere / anywhere.norm() + along / along.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return direction / direction.norm()


class Difference(NamedTuple):
    """Along the direction, of the loss, of its gradient in theta, of that in phi: central differences, or products."""

    slope: Tensor
    hessian: Tensor
    mixed: Tensor


def central_difference(trial: DerivativeTrial, direction: Tensor, step: float) -> Difference:
    (*ahead, loss_ahead), (*behind, loss_behind) = (trial.gradients(way * step * direction) for way in (1, -1))
    along_theta, along_phi = ((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
    return Difference((loss_ahead - loss_behind) / (2 * step), along_theta, along_phi)


class KeptFromWeights(NamedTuple):
    """Buffers that follow the weights and that the next pass computes with, and their share of the loss's slope."""

    names: Sequence[str]
    share: float


def kept_from_weights(
    trial: DerivativeTrial, direction: Tensor, step: float, gradient: Tensor
) -> KeptFromWeights | None:
    """Whether the loss of a pass depends on the weights of the one before through buffers; None: not so that it counts.

    Running statistics of a batch norm follow the weights too, and a pass in training mode does not compute with them.
    """
    if not trial.student.buffers:
        return None
    sides = [trial.buffers_after(way * step * direction) for way in (1, -1)]
    ahead, behind = map(trial.loss_with, sides)
    slope = torch.maximum((gradient @ direction).abs(), 1e-3 * gradient.norm())
    share = ((ahead - behind).abs() / (2 * step) / slope).item()
    if not share > KEPT:
        return None

    def alone(name: str) -> list[Tensor]:
        return [trial.loss_with({**trial.student.buffers, name: side[name]}) for side in sides]

    return KeptFromWeights([name for name in sides[0] if len(set(torch.stack(alone(name)).tolist())) > 1], share)


class Errors(NamedTuple):
    """Of the loss's slope, of `H v`, of `M v`; relative."""

    first: float
    hessian: float
    mixed: float


def distances(one: Difference, other: Difference, floors: list[Tensor]) -> Errors:
    """How far apart the two are, relative to the larger one, or to the floor where that is larger still."""
    found = []
    for a, b, floor in zip(one, other, floors, strict=True):
        larger = torch.maximum(torch.maximum(a.norm(), b.norm()), floor)
        distance = (a - b).norm() / larger if larger > 0 else larger
        found.append(distance.nan_to_num(torch.inf).item())
    return Errors(*found)


def settled_radius(differences: dict[float, Difference], floors: list[Tensor]) -> float | None:
    """A radius at which the differences are those of the next smaller one as well; None: there is none."""
    radii = sorted(differences)
    for smaller, radius in pairwise(radii):
        if max(distances(differences[smaller], differences[radius], floors)) < SETTLED:
            return radius
    return None
