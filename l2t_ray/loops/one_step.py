"""The hypergradient through the one step that somebody else's optimizer is about to take.

    theta' = step(theta, g(theta, phi)),   e(theta') the error of clean examples

Three pieces make `d e / d phi`: `d e / d theta'` from a clean minibatch, the co-state `d e / d g` from the optimizer's
own recursion (`torch_steps.py`) and from what the loop did to the gradient (`gradient_changes.py`), and `d g / d phi`
from the graphs of the loop's forward passes (`pushes.py`). All of it is taken before the step: the graphs hold the
weights, which the step overwrites.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Variable

from l2t_ray.interfaces import UserError
from l2t_ray.loops.clean_set import CleanSet
from l2t_ray.loops.gradient_changes import before_changes
from l2t_ray.loops.pushes import LogitsChange, LossAt, Push
from l2t_ray.loops.torch_steps import ParameterStep, check_optimizer, check_taken, steps_ahead


class OneStep:
    """Watches a step from its first forward pass to its end.

    Args:
        model: whose weights the optimizer moves.
        max_norm: that the loop clips gradients to; None: it does not, by norm.

    Raises:
        UserError: if the optimizer's steps cannot be differentiated.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None):
        check_optimizer(optimizer)
        self._model, self._optimizer, self._max_norm = model, optimizer, max_norm
        self.begin()

    @property
    def parameters(self) -> list[Tensor]:
        """Those that the optimizer moves now: loops freeze some, and add others."""
        return [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]

    def begin(self) -> None:
        """Forgets the step before."""
        self._pushes: list[Push] = []
        self._left: list[Tensor | None] = []
        self._ahead: list[ParameterStep] = []

    def try_on(self, logits: Tensor) -> None:
        """
        Raises:
            UserError: if logits of the model cannot be differentiated twice.
        """
        LogitsChange(logits, self.parameters).along([p.detach().reshape(-1) for p in self.parameters])

    def watch(self, loss: Tensor, logits: Tensor, loss_at: LossAt, phi: Float[Tensor, " m"]) -> None:
        """Hears of a minibatch's forward pass, before its `backward()`.

        Args:
            loss: as the loop is given it.
            loss_at, phi: what it is computed by.
        """
        push = Push(logits, self.parameters, loss_at, phi)
        self._pushes.append(push)

        def entered(gradient: Tensor) -> None:
            push.count(gradient)
            Variable._execution_engine.queue_callback(self._keep_left)  # pyright: ignore[reportAttributeAccessIssue]

        loss.register_hook(entered)

    def _keep_left(self) -> None:
        """`backward()` is done: these are the gradients that it left, before the loop does anything to them."""
        self._left = [None if p.grad is None else p.grad.detach().clone() for p in self.parameters]

    def hypergradient(
        self, clean: CleanSet, number: int, autocast: torch.dtype | None
    ) -> tuple[float, Float[Tensor, " m"]]:
        """The error behind the step that the optimizer is about to take, on clean minibatch `number`, and `d e / d
        phi`.

        Raises:
            UserError: if no loss of this step came to `backward()`, or its gradient was changed in an unknown way.
        """
        pushes = [push for push in self._pushes if push.is_counted]
        if not pushes:
            raise UserError(
                "the optimizer takes a step, and no loss of teacher.criterion has come to backward() since the one "
                "before; call teacher.criterion(model(inputs), labels) in the place of the loop's loss."
            )
        self._ahead = steps_ahead(self._optimizer)
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        moved = {
            names[id(step.parameter)]: step.end.view_as(step.parameter)
            for step in self._ahead
            if id(step.parameter) in names
        }
        error, gradients = clean.error_gradient(number, moved, autocast)
        gammas = self._costates({id(p): gradients[names[id(p)]] for p in self.parameters if names.get(id(p)) in moved})
        return error, torch.stack([push.mixed_product(gammas) for push in pushes]).sum(dim=0)

    def _costates(self, gradients: dict[int, Tensor]) -> list[Float[Tensor, " p"]]:
        """By parameter `d e / d g` of the gradient that `backward()` left, from `d e / d theta'`."""
        ahead = {id(step.parameter): step for step in self._ahead}
        costates, left, used = [], [], []
        for parameter, own in zip(self.parameters, self._left, strict=True):
            step, gradient = ahead.get(id(parameter)), gradients.get(id(parameter))
            none = parameter.new_zeros(parameter.numel())
            left.append(none if own is None else own.reshape(-1))
            used.append(none if step is None else step.gradient)
            if step is None or gradient is None:
                costates.append(none)
            else:
                costates.append(step.costate_of_gradient(gradient.reshape(-1)))
        costate = before_changes(torch.cat(costates), torch.cat(left), torch.cat(used), self._max_norm)
        return list(costate.split([parameter.numel() for parameter in self.parameters]))

    def check_taken(self) -> None:
        """Holds the step that was taken against the one that was differentiated.

        Raises:
            UserError: if it was another one.
        """
        check_taken(self._ahead, self._optimizer)
