"""What the arguments of `fit` must be: one table."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import UserError
from l2t_ray.training.user_module import first_line

TEACHERS = ("adam", "lstm")
PRECISIONS = {"bf16": torch.bfloat16}
OPTIMIZERS = ("sgd", "adam", "adamw")
_OF_A_TASK = ("name", "metrics", "kinds", "row_is_example", "num_rows", "terms", "error", "score", "summarise")
_OF_AN_OPTIMIZER = ("nesterov", "betas", "eps", "eps_root", "clip")


class Rule(NamedTuple):
    must_be: str
    holds: Callable[[Any], bool]


def _whole(value: Any, least: int, below: float = math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < below


def _number(value: Any, is_allowed: Callable[[float], bool]) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False
    return math.isfinite(number) and is_allowed(number)


def _is_optimizer(settings: Mapping[Any, Any]) -> bool:
    name = settings.get("name")
    return isinstance(name, str) and name in OPTIMIZERS and settings.keys() <= {"name", *_OF_AN_OPTIMIZER}


def _are_callbacks(value: Any) -> bool:
    # A class is called as well, and would be made anew each round.
    return isinstance(value, list | tuple) and all(callable(one) and not isinstance(one, type) for one in value)


def _is_sound(loss: Any) -> bool:
    """A family of one's own is looked at where it is taken (`core/loss/brought.py`)."""
    if isinstance(loss, DynamicLossNetwork):
        return bool(loss.phi.isfinite().all())
    with suppress(Exception):  # an attribute may be a property of the user's own
        return isinstance(loss, LossFamily)
    return False


def _is_task(task: Any) -> bool:
    with suppress(Exception):
        return not isinstance(task, type) and all(hasattr(task, name) for name in _OF_A_TASK)
    return False


_COUNT = Rule("a whole number of at least 1", lambda value: _whole(value, 1))
_TRUTH = Rule("True or False", lambda value: isinstance(value, bool))
_COUNT_OR_NONE = Rule("None or a whole number of at least 1", lambda value: value is None or _whole(value, 1))
_RULES: dict[str, Rule] = {
    "num_rounds": _COUNT,
    "num_steps": _COUNT,
    "batch_size": _COUNT_OR_NONE,
    "val_batch_size": _COUNT_OR_NONE,
    "learning_rate": Rule(
        "None or a finite number above 0", lambda value: value is None or _number(value, lambda x: x > 0)
    ),
    "optimizer": Rule(
        f"{', '.join(map(repr, OPTIMIZERS))}, or one of them as 'name' beside {', '.join(_OF_AN_OPTIMIZER)} "
        "(learning_rate, momentum and weight_decay are arguments of their own)",
        lambda value: _is_optimizer(value if isinstance(value, Mapping) else {"name": value}),
    ),
    "momentum": Rule("a number in [0, 1)", lambda value: _number(value, lambda x: 0 <= x < 1)),
    "weight_decay": Rule("a finite number of at least 0", lambda value: _number(value, lambda x: x >= 0)),
    "warm_share": Rule(
        "None or a share of the rounds, in [0, 1]",
        lambda value: value is None or _number(value, lambda x: 0 <= x <= 1),
    ),
    "teacher": Rule(
        "None, " + " or ".join(map(repr, TEACHERS)),
        lambda value: value is None or (isinstance(value, str) and value in TEACHERS),
    ),
    "task": Rule(
        f"None or a task, which has {', '.join(_OF_A_TASK)} (docs/extending.md)",
        lambda value: value is None or _is_task(value),
    ),
    "loss": Rule(
        "None, a loss family or its settings, or a DynamicLossNetwork with finite weights",
        lambda value: value is None or isinstance(value, str | Mapping) or _is_sound(value),
    ),
    "seed": Rule("a whole number from 0 to 2^63 - 1", lambda value: _whole(value, 0, 2.0**63)),
    "try_first": _TRUTH,
    "on_row": Rule("a function of one row", callable),
    "callbacks": Rule("a list of functions of a round's number and its metrics", _are_callbacks),
    "eval_every": _COUNT,
    "precision": Rule(
        "None or 'bf16'", lambda value: value is None or (isinstance(value, str) and value in PRECISIONS)
    ),
    "progress": _TRUTH,
    "checkpoint": Rule(
        "None or a directory", lambda value: value is None or (isinstance(value, str | Path) and value != "")
    ),
    "checkpoint_every": _COUNT,
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Holds each argument that there is a rule for against it.

    Raises:
        UserError: naming the first argument that breaks its rule.
    """
    for name, value in arguments.items():
        rule = _RULES.get(name)
        if rule is not None and not rule.holds(value):
            shown = repr(value)
            raise UserError(
                f"{name} must be {rule.must_be}, got {shown if len(shown) <= 60 else type(value).__name__}."
            )


def autocast_of(
    precision: str | None, model: nn.Module, device: torch.device, engine: str | None = None
) -> torch.dtype | None:
    """What the model's operations are cast to; None: nothing.

    Args:
        engine: that second-order products are computed with.

    Raises:
        UserError: if the model's parameters, the device or the engine are not for that.
    """
    if precision is None:
        return None
    check_castable(f"precision={precision!r}", model, device)
    if engine == "forward_over_reverse":
        raise UserError(
            f"precision={precision!r} is not for method.engine={engine}: torch does not cast in forward mode; take the "
            "engine store or recompute."
        )
    return PRECISIONS[precision]


def check_castable(setting: str, model: nn.Module, device: torch.device) -> None:
    """
    Args:
        setting: by which the model's operations are to be cast, for messages.

    Raises:
        UserError: if its parameters or the device are not for that.
    """
    own = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if own != {torch.float32}:
        shown = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
        raise UserError(f"{setting} is for a model of float32 parameters, got {shown}; try .float().")
    if not torch.amp.is_autocast_available(device.type):
        raise UserError(f"{setting} is nothing that torch has on device {device.type!r}; leave it out.")


def usable_device(device: Any) -> torch.device:
    """The device, once something has been put on it.

    Raises:
        UserError: if there is no such device here.
    """
    try:
        if isinstance(device, bool):
            raise TypeError("a truth value is no device")
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("tensors there have no values")
        torch.zeros(1, device=found)
    except Exception as error:
        reason = first_line(error).split(". ")[0].rstrip(":")
        raise UserError(
            f"device must be one that this machine has, such as 'cpu', got {device!r}: {reason}."
        ) from error
    return found
