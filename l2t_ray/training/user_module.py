"""A module that somebody else wrote: copies of it, and what no training can be made of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.refusals import refuse_hooks
from l2t_ray.data.tensor_checks import by_name
from l2t_ray.interfaces import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copied(module: AnyModule, name: str = "model") -> AnyModule:
    """A copy that shares nothing with the module.

    Tensors that a forward pass left on it, with a graph that cannot be copied, are copied by value; buffers that have
    no shape yet, which torch does not copy, are made anew.

    Raises:
        UserError: if it cannot be copied.
    """
    try:
        memo = {id(tensor): tensor.detach().clone() for tensor in _with_graph(module)}
        for buffer in filter(is_lazy, module.buffers()):
            memo[id(buffer)] = UninitializedBuffer(False, buffer.device, buffer.dtype)  # pyright: ignore
        copy = deepcopy(module, memo)
    except Exception as error:
        raise UserError(
            f"{name} cannot be copied, and a copy of it is what is trained: copy.deepcopy gives "
            f"{type(error).__name__}: {first_line(error)}; keep locks, files and generators out of it, or give it a "
            "__deepcopy__."
        ) from error
    mine = {id(parameter) for parameter in module.parameters()}
    if any(id(parameter) in mine for parameter in copy.parameters()):
        raise UserError(f"a copy of {name} shares its weights (its own __deepcopy__?), and would train it; mend that.")
    return copy


def uncompiled(module: nn.Module) -> nn.Module:
    """The module without `torch.compile`, in whichever of its parts: compiled code cannot be differentiated twice."""
    module = getattr(module, "_orig_mod", module)
    for part in module.modules():
        part._compiled_call_impl = None
        for name, child in part.named_children():
            setattr(part, name, getattr(child, "_orig_mod", child))
    return module


def initialise_lazy(module: nn.Module, inputs: Any, seed: int) -> None:
    """Gives lazy modules their shapes and weights, from one pass in evaluation mode. Others are left alone."""
    if not any(is_lazy(tensor) for tensor in [*module.parameters(), *module.buffers()]):
        return
    device = next(iter(by_name(inputs).values())).device
    with torch.no_grad(), counted_draws(seed, device), in_evaluation_mode(module):
        answer(module, inputs)


def answer(module: nn.Module, inputs: Any) -> Any:
    """What a module makes of inputs: of one tensor, or of several by the names of its arguments."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def check_parameters(module: Any, name: str = "model") -> None:
    """What can be seen without a forward pass.

    Raises:
        UserError: if the module has nothing to train, or weights of several kinds or places.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} must be a torch.nn.Module, got a {type(module).__name__}.")
    if any(isinstance(child, torch.jit.ScriptModule) for child in module.modules()):
        raise UserError(f"{name} has a TorchScript module, whose weights cannot be replaced; give the plain module.")
    refuse_hooks(module, name)  # a copy would have lost them
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(
            f"{name} has no parameter with requires_grad=True, so there is nothing to train; unfreeze some."
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UserError(f"{name} has parameters on the meta device, without values; give it weights with to_empty().")
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in trained if not is_lazy(p)})
    if len(kinds) > 1 or any(parameter.is_complex() for parameter in trained):
        raise UserError(
            f"{name} trains parameters of {' and '.join(kinds)}, and one real type is needed; try .float()."
        )
    places = sorted({str(parameter.device) for parameter in module.parameters()})
    if len(places) > 1:
        raise UserError(f"{name} lies on several devices ({', '.join(places)}), and one is needed; move it to one.")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")[:200]


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, all parts of the module are; afterwards each is in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def _with_graph(module: nn.Module) -> Iterator[Tensor]:
    for child in module.modules():
        for value in vars(child).values():
            yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors that are results of a differentiable computation, in attributes as they are or in containers."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _tensors_in(item)
    elif isinstance(value, Sequence | set) and not isinstance(value, str | bytes):
        for item in value:
            yield from _tensors_in(item)
