"""What a model keeps from pass to pass outside of its buffers: counters, tensors and generators in plain attributes.

Buffers are given to each pass and taken from it, so that a pass that only looks, or is taken again, finds and leaves
them as they should be. A plain attribute is the module's own: every pass moves it, and finds it where the last one
left it.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2t_ray.interfaces import UserError

_TORCHS = frozenset(vars(nn.Module()))
_MOST_ENTRIES, _DEEPEST = 100, 3
_FAR = 997
"""By so many passes a counter is set ahead to see whether it ever counts."""
_SAME = 1e-6


def refuse_kept_state(module: nn.Module, before: Mapping[str, Any], outputs: Callable[[], Sequence[Tensor]]) -> None:
    """Refuses a module that changes plain attributes and computes with them.

    Args:
        before: `plain_state` before a first pass.
        outputs: takes one more pass, on the same inputs, weights and buffers, and with the same draws.

    Raises:
        UserError: naming the attributes.
    """
    if plain_state(module) == before:
        return
    first, there = outputs(), plain_state(module)
    second, then = outputs(), plain_state(module)
    moved = [name for name in then if there.get(name) != then[name]]  # what the first pass alone sets is a cache
    if moved and (_differ(first, second) or _counts(module, moved, there, then, second, outputs)):
        raise UserError(
            f"the model's forward() changes {' and '.join(moved[:3])} and computes with it, which is no buffer: passes "
            "that only look move it too, and a pass that is taken again does not find it as it was; keep numbers in "
            "register_buffer, and draw random numbers without a generator of the model's own."
        )


def plain_state(module: nn.Module) -> dict[str, Any]:
    """Each plain attribute of a module and its parts, by dotted name, as something to compare."""
    return {
        f"{prefix}.{key}" if prefix else key: _frozen(value, _DEEPEST)
        for prefix, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _TORCHS
    }


def _frozen(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | np.number):
        return repr(value)
    if isinstance(value, nn.Parameter | nn.Module | type):
        return None
    if isinstance(value, Tensor):
        numbers = value.detach()
        if numbers.is_complex():
            numbers = torch.view_as_real(numbers)
        sums = (numbers.double().sum().item(), numbers.double().abs().sum().item()) if not numbers.is_meta else ()
        return repr((tuple(value.shape), value.dtype, sums))
    if isinstance(value, np.ndarray):
        return repr((value.shape, value.dtype, value.tobytes()))
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return value.getstate()
    return _frozen_parts(value, depth)


def _frozen_parts(value: Any, depth: int) -> Any:
    """Of a container, or of an object with attributes; None: it cannot be looked into."""
    if not depth:
        return None
    if isinstance(value, Mapping):
        return [(repr(key), _frozen(part, depth - 1)) for key, part in list(value.items())[:_MOST_ENTRIES]]
    if isinstance(value, list | tuple | deque):
        return [len(value), *(_frozen(part, depth - 1) for part in list(value)[-_MOST_ENTRIES:])]
    if isinstance(getattr(value, "__dict__", None), dict) and not callable(value):
        return [(key, _frozen(part, depth - 1)) for key, part in list(vars(value).items())[:_MOST_ENTRIES]]
    return None


def _counts(
    module: nn.Module,
    moved: Sequence[str],
    there: Mapping[str, Any],
    then: Mapping[str, Any],
    usual: Sequence[Tensor],
    outputs: Callable[[], Sequence[Tensor]],
) -> bool:
    """Whether counters that moved change the outputs once they are far ahead, as those of a warm-up do."""
    put: list[tuple[nn.Module, str, Any]] = []
    for name in moved:
        prefix, _, key = name.rpartition(".")
        part = module.get_submodule(prefix)
        value = getattr(part, key, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            step = float(then[name]) - float(there[name])
            put.append((part, key, value))
            setattr(part, key, type(value)(value + _FAR * step))
    ahead = usual
    with suppress(Exception):  # so far on the model need not work
        ahead = outputs() if put else usual
    for part, key, value in put:
        setattr(part, key, value)
    return _differ(usual, ahead)


def _differ(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    def size(tensor: Tensor) -> float:
        return torch.linalg.vector_norm(tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)).item()

    return len(one) != len(other) or any(
        a.shape != b.shape or not size(a - b) <= _SAME * max(size(a), size(b)) for a, b in zip(one, other, strict=True)
    )
