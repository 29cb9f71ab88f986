"""The gradient-Lipschitz constants of Definition 1: C for the whole function, C_i and C~_i block-wise.

For a twice differentiable function they are the largest norms of the Hessian and of its blocks:
`C = sup ||H||`, `C_i = sup ||H_ii||`, `C~_1 = C~_2 = sup ||H_12||`, and `C_max` is the largest of the block-wise ones.
Always `C_max <= C <= 2 C_max`: a block's norm is at most the whole's, and the whole is a block-diagonal part of norm
`max ||H_ii||` plus a part of norm `||H_12||`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from l2t_ray.theory.alternating import Function, hessian_of


class Smoothness(NamedTuple):
    """Lipschitz constants of the gradient. `cross` is both C~_1 and C~_2, for H_21 is the transpose of H_12."""

    c: Float[Tensor, "*batch"]
    c_1: Float[Tensor, "*batch"]
    c_2: Float[Tensor, "*batch"]
    cross: Float[Tensor, "*batch"]

    @property
    def c_max(self) -> Float[Tensor, "*batch"]:
        return torch.maximum(torch.maximum(self.c_1, self.c_2), self.cross)


def hessian_smoothness(hessian: Float[Tensor, "*batch d d"], *, split: int) -> Smoothness:
    """The constants of the quadratic with this Hessian: spectral norms of the whole and of its blocks."""

    def norm(block: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(block, ord=2)

    return Smoothness(
        c=norm(hessian),
        c_1=norm(hessian[..., :split, :split]),
        c_2=norm(hessian[..., split:, split:]),
        cross=norm(hessian[..., :split, split:]),
    )


def estimate_smoothness(
    function: Function,
    center: Float[Tensor, " d"],
    *,
    split: int,
    radius: float,
    num_points: int = 256,
    generator: torch.Generator,
) -> Smoothness:
    """The constants of `function` on a ball, as the largest Hessian norms at random points and at the center.

    A maximum over points never exceeds the supremum, so these are estimates from below. Half of the points lie on the
    sphere, where the norms of polynomials are largest, and half uniformly inside.

    Args:
        radius: of the ball around `center`, in the units of the parameters.
        num_points: random points, besides the center.
    """
    size = center.shape[0]
    directions = torch.randn(num_points, size, dtype=center.dtype, generator=generator)
    directions = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    lengths = torch.rand(num_points, 1, dtype=center.dtype, generator=generator) ** (1 / size)
    lengths[: num_points // 2] = 1.0
    points = torch.cat((center[None], center + radius * lengths * directions))
    at_points = hessian_smoothness(vmap(hessian_of(function))(points), split=split)
    return Smoothness(*(constant.max() for constant in at_points))
