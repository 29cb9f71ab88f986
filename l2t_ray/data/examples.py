"""Inputs and labels that people bring, made into tensors or refused in a sentence."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from l2t_ray.interfaces import UserError

Examples = tuple[Tensor, Tensor]
"""`(inputs [n, ...], labels int64 [n])`."""

_AT_ONCE = 500


class Extremes(NamedTuple):
    """Where derivatives are likeliest to be missing or to explode: norms at zero, deviations of a constant."""

    rows: list[int]
    """The examples with the smallest and the largest values, and the one whose values differ least."""
    largest: float


def as_examples(name: str, given: Any) -> Examples:
    """Inputs and labels of the set that the caller calls `name`. NumPy arrays are taken too; nothing is scaled.

    Raises:
        UserError: if these are no inputs with one class number each.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        what = f"{len(given)} things" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise UserError(f"{name} must be (inputs, labels), two tensors or NumPy arrays, got {what}.")
    inputs, labels = (_as_tensor(f"{name}[{i}] ({what})", given[i]) for i, what in enumerate(("inputs", "labels")))
    if inputs.ndim == 0 or labels.ndim == 0:
        raise UserError(
            f"{name} must be (inputs [n, ...], labels [n]), got a single number; give it a first dimension."
        )
    if len(inputs) != len(labels):
        raise UserError(f"{name} has {len(inputs)} inputs but {len(labels)} labels; give one label each.")
    if len(inputs) == 0:
        raise UserError(f"{name} is empty; give at least one example of each class.")
    if inputs.numel() == 0:
        raise UserError(f"{name} has inputs without values, of shape {tuple(inputs.shape)}.")
    return inputs, _class_numbers(name, labels)


def extremes(name: str, inputs: Tensor) -> Extremes:
    """One pass over the values of all inputs; of class numbers as of pixels, for an embedding knows the largest or not.

    Raises:
        UserError: if a value is not finite.
    """
    bounds = [torch.aminmax(_numbers(piece).reshape(len(piece), -1), dim=1) for piece in inputs.split(_AT_ONCE)]
    lowest, highest = (torch.cat(ends).double() for ends in zip(*bounds, strict=True))
    sizes, spreads = torch.maximum(lowest.abs(), highest.abs()), highest - lowest
    is_bad = ~sizes.isfinite()
    if is_bad.any():
        raise UserError(
            f"{name} has values that are not finite in {int(is_bad.sum())} of {len(inputs)} inputs, the first at "
            f"position {int(is_bad.nonzero()[0])}; replace them or leave those examples out."
        )
    rows = {int(sizes.argmin()), int(sizes.argmax()), int(spreads.argmin())}
    return Extremes(sorted(rows), float(sizes.max()))


def _numbers(values: Tensor) -> Tensor:
    """Of a type that torch finds the largest of."""
    return values if values.is_floating_point() else values.double()


def _as_tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype == object or values.dtype.kind not in "biufc":
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
