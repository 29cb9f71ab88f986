"""How a step's gradient depends on the weights of the loss, from the graphs of the loop's own forward passes.

A minibatch's part of the gradient is `g = s J^T push(z, phi)`: z are the model's logits, J their derivative in the
parameters, push that of the loss in the logits, and s what the loop multiplies the loss with before `backward()`. phi
is in the push alone. So for a co-state gamma of the gradient

    gamma . d g / d phi  =  d / d phi  s push(z, phi) . (J gamma)

and `J gamma`, the logits' change along gamma, comes from the graph that is there: `J^T w` is linear in w, and its
derivative in w is J (Townsend 2017). The model is called no second time, so that dropout, augmentation and precision
are those of the step itself. gamma is known after the step alone, so `J^T w` is taken with a graph before
`backward()`, which frees the model's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.autograd_graph import Cuts, missing_derivative, own_functions
from l2t_ray.interfaces import UserError
from l2t_ray.training.user_module import first_line

LossAt = Callable[[Tensor, Float[Tensor, " m"]], Tensor]
"""`(logits, phi) -> the loss`, as the loop is given it."""


class Push:
    """Of one minibatch.

    Args:
        logits: with the graph of the model's forward pass.
        parameters: those that the optimizer moves.
        loss_at: of this minibatch.
        phi: the weights in use.

    Raises:
        UserError: if a function in the model has no second derivative.
    """

    def __init__(self, logits: Tensor, parameters: Sequence[Tensor], loss_at: LossAt, phi: Float[Tensor, " m"]):
        self._logits_change = LogitsChange(logits, parameters)
        self._phi = phi.detach().clone().requires_grad_()
        self._logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
        with torch.enable_grad():
            self._loss = loss_at(self._logits, self._phi)
        self._scale: Tensor | None = None

    @property
    def is_counted(self) -> bool:
        """Whether the loss of this minibatch went into a gradient."""
        return self._scale is not None

    def count(self, scale: Tensor) -> None:
        """Hears, of the loss, what `backward()` came to it with."""
        scale = scale.detach().to(self._loss)
        self._scale = scale if self._scale is None else self._scale + scale

    def mixed_product(self, gammas: Sequence[Tensor]) -> Float[Tensor, " m"]:
        """`gamma . d g / d phi`, gamma by parameter.

        Raises:
            UserError: if a function in the model has no second derivative.
        """
        change = self._logits_change.along(gammas).to(self._logits)
        with torch.enable_grad():
            (push,) = torch.autograd.grad(self._loss, self._logits, self._scale, create_graph=True)
        if not push.requires_grad:
            return torch.zeros_like(self._phi)
        (product,) = torch.autograd.grad(push, self._phi, change, allow_unused=True, materialize_grads=True)
        return product


class LogitsChange:
    """How logits change with the parameters.

    Raises:
        UserError: if a function in the model has no second derivative.
    """

    def __init__(self, logits: Tensor, parameters: Sequence[Tensor]):
        kind = logits.device.type
        # No zeros: what cuts a derivative off is seen by what leaves it.
        generator = torch.Generator().manual_seed(0)
        self._along = torch.randn(logits.shape, generator=generator).to(logits).requires_grad_()
        with torch.enable_grad(), torch.autocast(kind, enabled=False), Cuts() as cuts, _second_derivatives():
            cuts.watch(own_functions(logits))
            pulled = torch.autograd.grad(logits, parameters, self._along, create_graph=True, allow_unused=True)
        if cuts.sites():
            raise UserError(missing_derivative(", ".join(cuts.sites())))
        self._pulled = {number: part for number, part in enumerate(pulled) if part is not None and part.requires_grad}
        if not self._pulled:
            raise UserError(
                "the logits depend on no parameter that the optimizer moves; give the two that go together."
            )

    def along(self, gammas: Sequence[Tensor]) -> Tensor:
        """J gamma, of the shape of the logits."""
        ours = [gammas[number].reshape(part.shape).to(part) for number, part in self._pulled.items()]
        with _second_derivatives():
            (change,) = torch.autograd.grad(
                list(self._pulled.values()), self._along, ours, allow_unused=True, materialize_grads=True
            )
        return change


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Inside, what torch raises of a derivative that it does not have becomes a sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(missing_derivative("a function in the model", first_line(error))) from error
