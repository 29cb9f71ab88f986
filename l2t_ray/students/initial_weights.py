"""First weights of a student from a file, in the place of drawn ones: of all of it, or of its backbone alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2t_ray.interfaces import UserError

COUNTER = "num_batches_tracked"
"""Of batch norms; older files lack it, and nothing here reads it."""


def begin_with(model: nn.Module, path: Path) -> None:
    """Takes the tensors of a file, by name: all of the model's, or all of its attribute `backbone`'s.

    Args:
        path: a state dict as `.safetensors`, or as `torch.save` writes it; also below the key `state_dict`. What it has
            beside them, such as a last layer for other classes, is not used.

    Raises:
        UserError: if it cannot be read, runs code, or has not these tensors in these shapes.
    """
    tensors, backbone = _tensors(path), getattr(model, "backbone", None)
    targets = [model] if not isinstance(backbone, nn.Module) else [model, backbone]
    target = max(targets, key=lambda part: _share(part, tensors))
    own, whose = _own(target), "student" if target is model else "student's backbone"
    if lacking := sorted(own.keys() - tensors.keys()):
        raise UserError(
            f"student.initial_weights={path} lacks {len(lacking)} of the {len(own)} tensors of the {whose}, such as "
            f"{lacking[0]}; give a state dict of this student, or leave it out."
        )
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"student.initial_weights={path} has {name} of shape {list(tensors[name].shape)}, and that of the "
                f"{whose} is {list(value.shape)}; give a state dict of this student, or leave it out."
            )
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise UserError(f"student.initial_weights={path} has numbers in {name} that are not finite; mend it.")
    target.load_state_dict({name: tensors[name] for name in own}, strict=False)


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.endswith(COUNTER)}


def _share(module: nn.Module, tensors: Mapping[str, Tensor]) -> float:
    own = _own(module)
    return len(own.keys() & tensors.keys()) / max(1, len(own))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = _read(path.expanduser())
    except OSError as error:
        raise UserError(
            f"cannot read student.initial_weights={path}: {error.strerror or error}; give a file."
        ) from None
    except Exception as error:  # a file may hold anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"student.initial_weights={path} cannot be read as a state dict ({reason}); give .safetensors, or what "
            "torch.save writes of tensors alone."
        ) from None
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise UserError(f"student.initial_weights={path} is no state dict, tensors by name; give one.")
    return {str(name): value for name, value in found.items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
