"""A model in double precision, though it was not made for it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class DoubleThroughout(TorchFunctionMode):
    """Inside, floating-point arguments of PyTorch's functions are taken in double precision, and casts to another one
    are left out: constants that a model keeps for itself, and its own `.float()`, then do no harm.

    What a function writes to is left as it is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CASTS:
            return args[0].double()
        name = getattr(func, "__name__", "")
        if name in _PLAIN:
            return func(*args, **kwargs)
        writes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        args = (*args[:1], *map(_double, args[1:])) if writes else tuple(map(_double, args))
        return func(*args, **{key: value if key == "out" else _double(value) for key, value in kwargs.items()})


def doubled(value: Any) -> Any:
    """A tensor, or several by name, in double precision where it is of floating point."""
    if isinstance(value, Mapping):
        return {name: doubled(part) for name, part in value.items()}
    return value.double() if value.is_floating_point() else value


_PLAIN = ("__get__", "__set__", "requires_grad_", "detach", "backward", "register_hook")


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        is_single = value.is_floating_point() and value.dtype != torch.float64
        return value.double() if is_single else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if type(value) in (list, tuple):
        return type(value)(map(_double, value))
    return value
