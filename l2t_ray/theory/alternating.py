"""Alternating gradient descent on two blocks, and its matrices at a quadratic (supplement, Eqs. 8 and 21).

A point is one flat vector `u` of `d` numbers; its first `split` numbers are block 1, the others block 2. Every
function also takes many points at once, along leading axes, with one step size for all or one for each.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vmap

Function = Callable[[Float[Tensor, " d"]], Float[Tensor, ""]]
"""A smooth objective `e` of one flat vector."""

Gradient = Callable[[Float[Tensor, "*batch d"]], Float[Tensor, "*batch d"]]
"""The gradient of an objective, at many points at once."""


Hessian = Callable[[Float[Tensor, " d"]], Float[Tensor, "d d"]]


class AgdMatrices(NamedTuple):
    """`M u+ = G u` is one alternating step on the quadratic `u' H u / 2`."""

    m: Float[Tensor, "*batch d d"]
    g: Float[Tensor, "*batch d d"]


def gradient_of(function: Function) -> Gradient:
    """The gradient of `function` at each row of an `[n, d]` tensor."""
    return vmap(grad(function))


def hessian_of(function: Function) -> Hessian:
    """The Hessian of `function` at one point, reverse mode twice: all sizes here are small."""
    return jacrev(grad(function))


def alternating_step(
    gradient: Gradient, u: Float[Tensor, "*batch d"], eta: float | Float[Tensor, "*batch"], *, split: int
) -> Float[Tensor, "*batch d"]:
    """Block 1 takes a gradient step, then block 2 takes one at the new block 1 (Eq. 8)."""
    eta = _last_axis(eta, u)
    first = u[..., :split] - eta * gradient(u)[..., :split]
    halfway = torch.cat((first, u[..., split:]), dim=-1)
    second = u[..., split:] - eta * gradient(halfway)[..., split:]
    return torch.cat((first, second), dim=-1)


def simultaneous_step(
    gradient: Gradient, u: Float[Tensor, "*batch d"], eta: float | Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch d"]:
    """Plain gradient descent: both blocks step from the same point. What alternation is compared with."""
    return u - _last_axis(eta, u) * gradient(u)


def descent_path(step: Callable[[Tensor], Tensor], start: Tensor, num_steps: int) -> Tensor:
    """`start` and the `num_steps` points after it, stacked along a new first axis."""
    points = [start]
    for _ in range(num_steps):
        points.append(step(points[-1]))
    return torch.stack(points)


def agd_matrices(
    hessian: Float[Tensor, "*batch d d"], eta: float | Float[Tensor, "*batch"], *, split: int
) -> AgdMatrices:
    """`M = I + eta H_l` and `G = I - eta H_u`.

    Eq. (21) splits the Hessian into `H_l`, which holds the block below the diagonal alone, and `H_u`, all the rest:
    the second block reads the first block's new value through `H_l`, everything else reads old values.

    Raises:
        ValueError: if `split` leaves one of the two blocks empty.
    """
    size = hessian.shape[-1]
    if not 0 < split < size:
        raise ValueError(f"`split` must leave two blocks of a Hessian of size {size}, got {split}.")
    lower = torch.zeros_like(hessian)
    lower[..., split:, :split] = hessian[..., split:, :split]
    eta = _last_axis(eta, hessian[..., 0])[..., None]
    identity = torch.eye(size, dtype=hessian.dtype)
    return AgdMatrices(identity + eta * lower, identity - eta * (hessian - lower))


def iteration_matrix(
    hessian: Float[Tensor, "*batch d d"], eta: float | Float[Tensor, "*batch"], *, split: int
) -> Float[Tensor, "*batch d d"]:
    """`M^-1 G`, which takes `u` to the point after one alternating step on `u' H u / 2`."""
    m, g = agd_matrices(hessian, eta, split=split)
    # H_l squared is zero, so the inverse of I + eta H_l is exactly I - eta H_l: nothing is solved, nothing rounded.
    inverse = 2 * torch.eye(m.shape[-1], dtype=m.dtype) - m
    return inverse @ g


def identity_error(
    hessian: Float[Tensor, "*batch d d"],
    u: Float[Tensor, "*batch d"],
    eta: float | Float[Tensor, "*batch"],
    *,
    split: int,
) -> Float[Tensor, "*batch"]:
    """`||M u+ - G u|| / ||u||`, with `u+` from the step itself, not from the matrices. Zero up to rounding."""

    def gradient(at: Tensor) -> Tensor:
        return (hessian @ at[..., None])[..., 0]

    m, g = agd_matrices(hessian, eta, split=split)
    stepped = alternating_step(gradient, u, eta, split=split)
    difference = (m @ stepped[..., None] - g @ u[..., None])[..., 0]
    return torch.linalg.vector_norm(difference, dim=-1) / torch.linalg.vector_norm(u, dim=-1)


def _last_axis(eta: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(eta, dtype=like.dtype)[..., None]
