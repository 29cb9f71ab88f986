"""A family of losses that somebody brought, held to what a family is (`family.LossFamily`)."""

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import KeptFamily, LossFamily, RowLosses
from l2t_ray.interfaces import Metrics, Task, Terms, UserError
from l2t_ray.own_code import is_own, own_code

_MEMBERS = ("phi", "reads_memory", "losses", "fixed", "report")
TAKEN = frozenset(
    {
        *("arm", "round", "step", "epoch", "seconds", "images_per_second", "ended_at", "train_loss", "val_error", "lr"),
        *("gradient_norm", "logit_gradient_sum", "hypergradient_norm", "phi_step_norm", "phi_step_max", "reproduced"),
        *("weight_auc", "weight_right", "weight_wrong", "hypergradient_cosine"),
    }
)
"""Columns of a round that a loss's own numbers would hide."""
TAKEN_BEGINNINGS = ("test_", "validation_", "seconds_", "snr")


def checked_family(family: Any, what: str, task: Task | None = None) -> LossFamily:
    """The family.

    Args:
        what: what it is called, as in `loss 'mine:Loss'`.
        task: that it is to be a loss for; None: nobody knows.

    Raises:
        UserError: if it lacks something, its phi is no row of finite numbers of the usual type, or it is for another
            task.
    """
    with own_code(what, family):
        lacking = [name for name in _MEMBERS if not hasattr(family, name)]
        phi = getattr(family, "phi", None)
    if lacking:
        raise UserError(
            f"{what} is of type {type(family).__name__} and lacks {', '.join(lacking)}; give it the members of "
            "l2t_ray.core.loss.family.LossFamily."
        )
    if not isinstance(phi, Tensor):
        raise UserError(f"phi of {what} must be a tensor, the weights that it begins with, got {type(phi).__name__}.")
    usual = torch.get_default_dtype()
    if phi.dtype != usual or phi.ndim != 1 or not len(phi):
        raise UserError(
            f"phi of {what} must be a row of one number or more in {usual}, got {list(phi.shape)} in {phi.dtype}."
        )
    if not phi.isfinite().all():
        raise UserError(f"phi of {what} has {int((~phi.isfinite()).sum())} numbers that are not finite; mend them.")
    if task is not None and isinstance(family, KeptFamily):
        try:
            family.check(task)
        except ValueError as error:
            raise UserError(f"{what} {error}; give one that is for this task.") from None
    return family


def losses_of(
    family: LossFamily, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None
) -> RowLosses:
    """`family.losses`.

    Raises:
        UserError: if somebody's own family raises, or gives something else than a loss a row.
    """
    if not is_own(family):
        return family.losses(phi, terms, memory)
    what = f"losses of loss {type(family).__name__}"
    with own_code(what, family):
        rows = family.losses(phi, terms, memory)
    if not isinstance(rows, RowLosses):
        raise UserError(f"{what} must give RowLosses(values, weights, owner), got {type(rows).__name__}.")
    named = {"values": rows.values, "weights": rows.weights, "owner": rows.owner}
    shapes = {name: list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in named.items()}
    if (
        len({str(shape) for shape in shapes.values()}) > 1
        or not isinstance(rows.values, Tensor)
        or rows.values.ndim != 1
    ):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"{what} must give values, weights and owner of shape [n], one a row, got {given}.")
    return rows


def fixed_of(family: LossFamily, terms: Terms) -> Float[Tensor, " n"]:
    """`family.fixed`.

    Raises:
        UserError: if somebody's own family raises.
    """
    with own_code(f"fixed of loss {type(family).__name__}", family):
        return family.fixed(terms)


def report_of(family: LossFamily, phi: Float[Tensor, " m"]) -> Metrics:
    """`family.report`.

    Raises:
        UserError: if somebody's own family raises, gives something else than numbers by name, or takes the name of
            another number of a round.
    """
    if not is_own(family):
        return family.report(phi)
    what = f"report of loss {type(family).__name__}"
    with own_code(what, family):
        report: Any = family.report(phi)
    if not isinstance(report, Mapping) or not all(isinstance(name, str) for name in report):
        raise UserError(f"{what} must give numbers by name, got {type(report).__name__}; give {{}} for none.")
    for name, value in report.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
            raise UserError(f"{what} must give finite numbers, got {type(value).__name__} {value!r} for {name!r}.")
        if name in TAKEN or name.startswith(TAKEN_BEGINNINGS):
            raise UserError(f"{what} gives {name!r}, which is another number of a round; call it something else.")
    return {name: float(value) for name, value in report.items()}
