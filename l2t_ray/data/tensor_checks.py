"""Tensors that people bring as a training and a validation set: made alike, or refused in a sentence."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from l2t_ray.interfaces import UserError

_AT_ONCE = 500


class Extremes(NamedTuple):
    """Where derivatives are likeliest to be missing or to explode: norms at zero, deviations of a constant."""

    rows: list[int]
    """The examples with the smallest and the largest values, and the one whose values differ least."""
    largest: float


def as_inputs_and_targets(name: str, given: Any, *, are_labels: bool) -> tuple[Any, Any]:
    """Inputs and targets of the set that the caller calls `name`. NumPy arrays are taken too; nothing is scaled. Inputs
    may be several by name, and targets, where they are no class numbers, too.

    Raises:
        UserError: if these are no tensors, or not as many of each.
    """
    what = "labels" if are_labels else "targets"
    inputs, targets = (as_tensors(part, values) for part, values in _pair(name, given, what))
    for values in by_name(inputs).values():
        for others in by_name(targets).values():
            _check_lengths(name, values, others, what)
    if not are_labels:
        return inputs, targets
    if isinstance(targets, Mapping):
        raise UserError(f"{name}: labels must be one tensor, got several by name ({_names(targets)}).")
    return inputs, _class_numbers(name, targets)


def _pair(name: str, given: Any, targets: str) -> list[tuple[str, Any]]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        what = f"{len(given)} things" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise UserError(f"{name} must be (inputs, {targets}), two tensors or NumPy arrays, or a Dataset, got {what}.")
    return [(f"{name}[{i}] ({what})", given[i]) for i, what in enumerate(("inputs", targets))]


def _check_lengths(name: str, inputs: Tensor, targets: Tensor, what: str) -> None:
    if inputs.ndim == 0 or targets.ndim == 0:
        raise UserError(
            f"{name} must be (inputs [n, ...], {what} [n]), got a single number; give it a first dimension."
        )
    if len(inputs) != len(targets):
        raise UserError(f"{name} has {len(inputs)} inputs but {len(targets)} {what}; give one {what[:-1]} each.")
    if len(inputs) == 0:
        raise UserError(f"{name} is empty; give at least one example of each class.")
    if inputs.numel() == 0:
        raise UserError(f"{name} has inputs without values, of shape {tuple(inputs.shape)}.")


def extremes(name: str, inputs: Tensor) -> Extremes:
    """One pass over the values of all inputs; of class numbers as of pixels, for an embedding knows the largest or not.

    Raises:
        UserError: if a value is not finite.
    """
    return extremes_within(name, [bounds(piece) for piece in inputs.split(_AT_ONCE)])


def bounds(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each example."""
    lowest, highest = torch.aminmax(_numbers(inputs).reshape(len(inputs), -1), dim=1)
    return lowest, highest


def extremes_within(name: str, pieces: Sequence[tuple[Tensor, Tensor]]) -> Extremes:
    """Of inputs whose `bounds` are these, piece by piece.

    Raises:
        UserError: if a value is not finite.
    """
    lowest, highest = (torch.cat(ends).double() for ends in zip(*pieces, strict=True))
    sizes, spreads = torch.maximum(lowest.abs(), highest.abs()), highest - lowest
    is_bad = ~sizes.isfinite()
    if is_bad.any():
        raise UserError(
            f"{name} has values that are not finite in {int(is_bad.sum())} of {len(sizes)} inputs, the first at "
            f"position {int(is_bad.nonzero()[0])}; replace them or leave those examples out."
        )
    rows = {int(sizes.argmin()), int(sizes.argmax()), int(spreads.argmin())}
    return Extremes(sorted(rows), float(sizes.max()))


def check_same_form(
    train: Any, validation: Any, what: str = "inputs", others: str = "validation", *, has_one_shape: bool = True
) -> None:
    """
    Args:
        train, validation: the inputs (or what else they are called) of the two sets, a tensor or several by name.
        others: what the user calls the second one.
        has_one_shape: False: shapes may differ from minibatch to minibatch.

    Raises:
        UserError: if they differ in names, shapes or types.
    """
    first, second = by_name(train), by_name(validation)
    if first.keys() != second.keys():
        raise UserError(
            f"{what} of train are {_names(train)}, those of {others} {_names(validation)}; give both sets the same."
        )
    for name, values in first.items():
        shapes = [tuple(inputs.shape[1:]) for inputs in (values, second[name])]
        dtypes = [inputs.dtype for inputs in (values, second[name])]
        if (has_one_shape and shapes[0] != shapes[1]) or dtypes[0] != dtypes[1]:
            which = f"{what} {name!r}" if name else what
            raise UserError(
                f"{which} of train are {shapes[0]} of {dtypes[0]} each, those of {others} {shapes[1]} of "
                f"{dtypes[1]}; give both sets the same form."
            )


def checksum_of(parts: Iterable[Any]) -> str:
    """Of tensors, and of several by name: of their types, shapes and values, not of where they are."""
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in by_name(part).items():
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def by_name(values: Any) -> Mapping[str, Tensor]:
    """Several tensors by name; a single one has the empty name."""
    return values if isinstance(values, Mapping) else {"": values}


def _names(values: Any) -> str:
    return ", ".join(map(repr, values)) if isinstance(values, Mapping) else "one tensor"


def count_classes(train: Tensor, validation: Tensor) -> int:
    """How many classes there are, with those below the highest that have no examples.

    Raises:
        UserError: if there are fewer than two, or one is in one set alone.
    """
    in_train, in_validation = (set(labels.unique().tolist()) for labels in (train, validation))
    if foreign := sorted(in_validation - in_train):
        raise UserError(
            f"validation has the label {foreign[-1]}, and train has classes {_listed(in_train)}; "
            "every class must be trained on."
        )
    missing = sorted(in_train - in_validation)
    if len(in_train) < 2 or missing:
        what = f"class {missing[0]} is absent from validation" if missing else "there are fewer than two classes"
        raise UserError(f"{what}; every class of train must be validated on.")
    return max(in_train) + 1


def class_numbers(targets: Any, num_classes: int) -> Int[np.ndarray, " n"] | None:
    """Targets that are one class number an example, as int64; None: they are something else."""
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        return None
    labels = targets.cpu().numpy().astype(np.int64, copy=False)
    return labels if ((labels >= 0) & (labels < num_classes)).all() else None


def _listed(classes: set[int]) -> str:
    if classes == set(range(len(classes))):
        return f"0 to {len(classes) - 1}"
    shown = sorted(classes)[:10]
    return ", ".join(map(str, shown)) + (", ..." if len(classes) > len(shown) else "")


def _numbers(values: Tensor) -> Tensor:
    """Of a type that torch finds the largest of."""
    return values if values.is_floating_point() else values.double()


def as_tensors(name: str, values: Any) -> Any:
    """A tensor, or several by name, of what the caller calls so.

    Raises:
        UserError: if it is none.
    """
    if not isinstance(values, Mapping):
        return _as_tensor(name, values)
    if not values or not all(isinstance(key, str) for key in values):
        raise UserError(f"{name} must be one tensor, or several by name, got a mapping with the keys {[*values]}.")
    return {key: _as_tensor(f"{name}[{key!r}]", value) for key, value in values.items()}


def _as_tensor(name: str, values: Any) -> Tensor:
    if callable(to_numpy := getattr(values, "to_numpy", None)):  # tables and columns, of pandas and others
        values = to_numpy()
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "US" or (values.dtype == object and isinstance(next(values.flat, None), str)):
            raise UserError(f"{name} is text; number it, as classes by np.unique(values, return_inverse=True)[1].")
        if values.dtype.kind not in "biufc":
            raise UserError(f"{name} is a NumPy array of {values.dtype}; give numbers in one array of equal shapes.")
        native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        values = torch.from_numpy(native if native.flags.writeable else native.copy())
    if not isinstance(values, Tensor):
        raise UserError(f"{name} must be a tensor or a NumPy array, got a {type(values).__name__}.")
    if values.is_nested or values.layout is not torch.strided or values.is_quantized or values.is_meta:
        raise UserError(f"{name} must be an ordinary dense tensor, got one that is nested, sparse, quantised or empty.")
    if values.is_complex():
        raise UserError(f"{name} is complex ({values.dtype}); give real numbers, such as torch.view_as_real(inputs).")
    return values.detach()


def _class_numbers(name: str, labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        cure = (
            "labels.argmax(1) for one-hot labels, labels.flatten() for a column" if labels.ndim > 1 else "labels.long()"
        )
        raise UserError(
            f"{name}: labels must be one int64 class number an example, got shape {tuple(labels.shape)} of "
            f"{labels.dtype}; give {cure}."
        )
    labels = labels.long()
    if int(labels.min()) < 0:
        raise UserError(f"{name}: labels must be at least 0, got {int(labels.min())}; leave such examples out.")
    return labels
