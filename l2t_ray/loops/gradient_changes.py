"""What a loop does with gradients between `backward()` and the optimizer's step, and the way back through it."""

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import UserError

_ADDED = 1e-6
"""`torch.nn.utils.clip_grad_norm_` adds it to the norm."""
_TOLERANCE = 1e-4


def before_changes(
    costate: Float[Tensor, " p"], given: Float[Tensor, " p"], used: Float[Tensor, " p"], max_norm: float | None
) -> Float[Tensor, " p"]:
    """The co-state of the gradient that `backward()` left, from that of the gradient that the optimizer used.

    With g for what was left: where it is clipped to a norm, `g clip / (||g|| + 1e-6)`, the derivative is symmetric;
    where it is clipped value by value, it is 0 at those that were.

    Args:
        given: by `backward()`, all parameters as one vector.
        used: by the optimizer.
        max_norm: to which the loop clips gradients; None: it does not.

    Raises:
        UserError: if something else was done.
    """
    if torch.equal(given, used):
        return costate
    norm, length = torch.linalg.vector_norm(given), torch.linalg.vector_norm(used)
    if max_norm is not None:
        factor = max_norm / (norm + _ADDED)
        if factor < 1 and torch.linalg.vector_norm(used - factor * given) <= _TOLERANCE * length:
            unit = given / norm
            return factor * (costate - unit * (unit @ costate) * (norm / (norm + _ADDED)))
    bound = used.abs().max()
    if torch.equal(used, given.clamp(-bound, bound)):
        return torch.where(given.abs() <= bound, costate, 0)
    raise UserError(
        f"gradients were changed between backward() and the optimizer's step, from a norm of {norm:.4g} to "
        f"{length:.4g}, and their derivative is needed; clip them by torch.nn.utils.clip_grad_norm_ and give the same "
        f"max_norm here (it is {max_norm}), call backward() once a minibatch, and leave them alone otherwise."
    )
