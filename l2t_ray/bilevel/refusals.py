"""What a model must not do if it is to be trained from a flat vector: each a sentence, where silence would train it
wrongly."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from l2t_ray.bilevel.autograd_graph import graph_nodes
from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.bilevel.plain_state import plain_state, refuse_kept_state
from l2t_ray.interfaces import UserError

if TYPE_CHECKING:
    from l2t_ray.bilevel.flat import FlatModule

_FAR = 100.0
"""By so much weights are scaled to see whether the model clips them: what it limits, it limits there."""


def refuse_unfit(module: nn.Module) -> None:
    """Refuses parameters that do not make one vector: of several types or devices, complex, or without a shape."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise UserError(
                f"the model's {name} has no shape yet (a lazy module); call the model once on a few examples before."
            )
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UserError("the model has scripted parts, whose weights cannot be exchanged; give the unscripted model.")
    if any(is_compiled(part) for part in module.modules()):
        raise UserError("the model is compiled for its own weights; give the module that torch.compile was given.")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, p in trained.items():
        if p.is_complex():
            raise UserError(
                f"the model's parameter {name} is complex; make it a real one with a last dimension of 2, and use "
                "torch.complex(w[..., 0], w[..., 1]) in forward()."
            )
    for attribute, remedy in (("dtype", "convert all, for instance by model.float()"), ("device", "move all to one")):
        kinds = {str(getattr(p, attribute)).removeprefix("torch."): name for name, p in trained.items()}
        if len(kinds) > 1:
            found = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
            raise UserError(f"the model's trained parameters must have one {attribute}, got {found}; {remedy}.")
    refuse_hooks(module)
    owners: dict[int, str] = {}
    for name, p in trained.items():
        other = owners.setdefault(p.data_ptr(), name)
        if other != name and p.numel():
            raise UserError(
                f"the model's parameters {other} and {name} share memory but are two; make them one nn.Parameter."
            )


def refuse_hooks(module: nn.Module, name: str = "the model") -> None:
    """Refuses hooks on parameters: gradients are taken in the flat vector, where they would not run."""
    for key, p in module.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise UserError(
                f"{name} has a hook on its parameter {key}, which would not run; mask or scale what is made of it in "
                "forward() instead, as torch.nn.utils.parametrize does, or freeze it."
            )


def is_compiled(part: nn.Module) -> bool:
    """By `torch.compile(part)` or `part.compile()`: it would be traced anew for all weights that it is given."""
    return hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None


def refuse_edited(names: Collection[str] = ()) -> NoReturn:
    which = f"its parameter {', '.join(names)}" if names else "one of its parameters"
    raise UserError(
        f"the model's forward() edits {which} in place (clipping, max_norm, .data), which the derivative through "
        "training steps cannot see; constrain what is computed from the parameter instead, as "
        "torch.nn.utils.parametrize does."
    )


def refuse_changed(changed: Mapping[str, Any], weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Refuses what is in a module's places after a forward pass (`Places.changed`), but for buffers as they were."""
    for name, new in changed.items():
        if name in weights:
            raise UserError(
                f"the model's forward() assigns or deletes its parameter {name}, which is then not trained; "
                "compute with a local variable instead."
            )
        if name not in buffers:
            raise UserError(
                f"the model's {name} is None until its first forward(); call the model once on a few examples "
                "before, or register it with its shape."
            )
        old = buffers[name]
        if new is None:
            raise UserError(f"the model's forward() sets its buffer {name} to None; give it a value of the same shape.")
        if (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
            raise UserError(
                f"the model's forward() turns its buffer {name} from {_kind(old)} into {_kind(new)}; a buffer must "
                "keep shape, type and device: register it as it will be."
            )


def refuse_unsound(
    student: "FlatModule", theta: Tensor, buffers: Mapping[str, Tensor], args: Any, kwargs: Mapping[str, Any]
) -> list[str]:
    """`FlatModule.check` without its care for random numbers."""
    weights, in_place = theta.clone().requires_grad_(), {}
    own_buffers = dict(student.module.named_buffers())
    versions = {name: buffer._version for name, buffer in own_buffers.items()}

    def results(weights: Tensor) -> list[Tensor]:
        output = student(weights, _copies(buffers), *args, training=True, **kwargs)
        return [t for t in tensors_in(output) if t.requires_grad]

    kept = plain_state(student.module)
    hook = student.module.register_forward_hook(lambda module, *_: in_place.update(module.named_parameters()))
    found = results(weights)
    hook.remove()
    exchanged = [n for n, view in student.views(weights).items() if in_place[n].data_ptr() != view.data_ptr()]
    if exchanged:
        refuse_edited(exchanged)
    leaves, known = list(_leaves(found)), [weights, *tensors_in((args, kwargs))]
    foreign = [leaf for leaf in leaves if not any(leaf is tensor for tensor in known)]
    if foreign:  # what the model makes in each call, to differentiate in it, is its own affair
        again = {id(leaf) for leaf in _leaves(results(weights))}
        _refuse_foreign(student.module, [leaf for leaf in foreign if id(leaf) in again])
    if not any(leaf is weights for leaf in leaves):
        raise UserError("the model's output depends on none of its trained parameters; nothing could be learned.")
    for name, buffer in own_buffers.items():
        if buffer._version != versions[name]:
            raise UserError(
                f"the model's forward() changes its buffer {name} through a reference in a closure or another object, "
                "where it cannot be replaced; use it as an attribute of its module."
            )
    _refuse_own_backward(weights, found)
    _refuse_clipping(student, theta, weights, buffers, args, kwargs)

    def outputs() -> list[Tensor]:
        with unmoved_draws(theta.device):
            return [tensor.detach() for tensor in results(weights)]

    refuse_kept_state(student.module, kept, outputs)
    reached = set(graph_nodes(*found))
    return [name for name in student.views(theta) if in_place[name].grad_fn not in reached]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a tensor, in containers, or in an object's attributes."""
    seen: dict[int, Any] = {}
    sought = [value]
    while sought:
        value = sought.pop()
        if isinstance(value, Tensor):
            yield value
        if isinstance(value, Tensor | nn.Module | type) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Mapping):
            sought += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            sought += value
        elif hasattr(value, "__dict__"):
            sought += vars(value).values()


def _refuse_foreign(module: nn.Module, leaves: list[Tensor]) -> None:
    names = {id(p): name for name, p in module.named_parameters()}
    for leaf in leaves:
        if id(leaf) in names:
            raise UserError(
                f"the model computes with its parameter {names[id(leaf)]} through a reference in a closure or another "
                "object, where it cannot be replaced; use it as an attribute of its module."
            )
        raise UserError(
            f"the model computes with a tensor of {_kind(leaf)} that requires gradients and is none of its parameters, "
            "so it would not be trained; register it: an nn.Parameter or nn.Module as an attribute, or in an "
            "nn.ParameterList or nn.ModuleList, or freeze it by requires_grad_(False)."
        )


def _leaves(results: list[Tensor]) -> Iterator[Tensor]:
    """The tensors that derivatives of these end in."""
    yield from (t for t in results if t.grad_fn is None)
    for node in graph_nodes(*results):
        if node.name().endswith("CheckpointFunctionBackward"):
            raise UserError(
                "the model uses a reentrant checkpoint, which cannot be differentiated twice; call "
                "torch.utils.checkpoint.checkpoint with use_reentrant=False."
            )
        if hasattr(node, "variable"):
            yield node.variable


def _refuse_own_backward(theta: Tensor, results: list[Tensor]) -> None:
    total = sum(t.real.sum() if t.is_complex() else t.sum() for t in results)
    assert isinstance(total, Tensor)
    torch.autograd.grad(total, theta)
    if theta.grad is not None:
        raise UserError(
            "a part of the model calls backward() in its own backward pass, which leaves gradients where they are not "
            "looked for; take them by torch.autograd.grad and return them."
        )


def _refuse_clipping(
    student: "FlatModule",
    theta: Tensor,
    theta_after: Tensor,
    buffers: Mapping[str, Tensor],
    args: Any,
    kwargs: Mapping[str, Any],
) -> None:
    """Edits by `.data` leave no trace but the values."""
    _refuse_difference(student, theta, theta_after)
    far = _FAR * theta
    with torch.no_grad():
        far_after = far.clone()
        with suppress(Exception):  # so far off the model need not work
            student(far_after, _copies(buffers), *args, training=True, **kwargs)
    _refuse_difference(student, far, far_after)


def _refuse_difference(student: "FlatModule", before: Tensor, after: Tensor) -> None:
    pairs = zip(student.views(before).items(), student.views(after.detach()).values(), strict=True)
    edited = [name for (name, old), new in pairs if not torch.equal(old, new)]
    if edited:
        refuse_edited(edited)


def _copies(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
