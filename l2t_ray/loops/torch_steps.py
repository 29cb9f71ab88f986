"""A step that one of torch's own optimizers takes, as `bilevel/optimizers.py` knows it, and the way back through it.

Each parameter is looked at by itself: groups have rates and decays of their own, and a parameter that had no gradient
in some steps has a count of its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.optimizers import NUM_STEPS, SECOND_MOMENT, Adam, Costates, Optimizer, Sgd, Trace
from l2t_ray.interfaces import UserError

_DOUBTED = 0.01
"""A step that is further from ours than this share of its length is another step."""
_ROUNDINGS = 8
"""So many roundings of a weight are no difference."""


class ParameterStep(NamedTuple):
    """What a step of the optimizer does with one parameter. Vectors are flat.

    Attributes:
        gradient: as the optimizer is given it.
        start, end: the parameter before and behind the step.
    """

    parameter: Tensor
    gradient: Float[Tensor, " p"]
    start: Float[Tensor, " p"]
    end: Float[Tensor, " p"]
    rule: Optimizer
    trace: Trace

    def costate_of_gradient(self, costate: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """`d e / d gradient`, from `d e / d end`."""
        return self.rule.back(Costates.at_end(costate), self.trace)[0]

    def distances(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """How far the parameter now is from the step's end, and how far it may be; both squared."""
        now = self.parameter.detach().reshape(-1)
        rounding = _ROUNDINGS * torch.finfo(now.dtype).eps * torch.linalg.vector_norm(now)
        allowed = _DOUBTED * torch.linalg.vector_norm(self.end - self.start) + rounding
        return (now - self.end).square().sum(), allowed.square()


def check_optimizer(optimizer: Any) -> None:
    """
    Raises:
        UserError: if its steps cannot be differentiated here, or its weights are in half precision.
    """
    for group in _groups(optimizer):
        _rule(optimizer, group)
        for parameter in group["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                kind = str(parameter.dtype).removeprefix("torch.")
                raise UserError(
                    f"optimizer has weights in {kind}, too coarse to tell what a step of the loss changes; keep the "
                    "weights in float32 and train under bf16 autocast."
                )


def steps_ahead(optimizer: torch.optim.Optimizer) -> list[ParameterStep]:
    """What the optimizer is about to do with each parameter that has a gradient.

    Raises:
        UserError: see `check_optimizer`; or if a gradient is sparse.
    """
    return [
        _step_ahead(parameter, _rule(optimizer, group), float(group["lr"]), optimizer.state.get(parameter, {}))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def check_taken(steps: list[ParameterStep], optimizer: object) -> None:
    """Holds the step that was taken against ours, from the same state and gradients.

    Raises:
        UserError: if it was another one.
    """
    distances, allowed = (torch.stack(parts).sum() for parts in zip(*(s.distances() for s in steps), strict=True))
    if distances > allowed:
        raise UserError(
            f"optimizer ({type(optimizer).__name__}) took another step than its settings say, so its derivative is "
            "not known; give torch.optim.SGD, Adam or AdamW, and leave weights and state to it."
        )


def _groups(optimizer: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam):
        raise UserError(
            f"optimizer must be torch.optim.SGD, Adam or AdamW, whose steps can be differentiated here, got "
            f"{type(optimizer).__name__}; take one of these."
        )
    yield from optimizer.param_groups


def _rule(optimizer: object, group: Mapping[str, Any]) -> Optimizer:
    """Ours, with the settings of a group of torch's."""
    for name in ("maximize", "amsgrad", "dampening", "differentiable"):
        if group.get(name):
            raise UserError(
                f"optimizer ({type(optimizer).__name__}) has {name}={group[name]!r}, through which no hypergradient "
                "is taken; leave it out."
            )
    decay = float(group["weight_decay"])
    if isinstance(optimizer, torch.optim.SGD):
        return Sgd(float(group["momentum"]), decay, nesterov=bool(group["nesterov"]))
    b1, b2 = map(float, group["betas"])
    decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
    return Adam((b1, b2), float(group["eps"]), decay, decoupled)


def _step_ahead(parameter: Tensor, rule: Optimizer, rate: float, state: Mapping[str, Any]) -> ParameterStep:
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        raise UserError(
            "a parameter has a sparse gradient, through which no hypergradient is taken; make its embedding with "
            "sparse=False."
        )
    # The step changes all of these in place: copies, where they are looked at again behind it.
    student, gradient = rule.begin(_flat(parameter).clone(), {}), _flat(parameter.grad)
    if (velocity := state.get("momentum_buffer", state.get("exp_avg"))) is not None:
        student = student._replace(velocity=_flat(velocity))
    if "exp_avg_sq" in state:
        num_steps = torch.as_tensor(state["step"], device=parameter.device).long()
        student = student._replace(carried={SECOND_MOMENT: _flat(state["exp_avg_sq"]), NUM_STEPS: num_steps})
    moved, trace = rule.step(student, gradient, rate)
    return ParameterStep(parameter, gradient, student.theta, moved.theta, rule, trace)


def _flat(tensor: Tensor) -> Float[Tensor, " p"]:
    return tensor.detach().reshape(-1)
