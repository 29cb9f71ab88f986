"""A round in numbers, or why it has none."""

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.unroll import InnerProblem, StepStatistics
from l2t_ray.interfaces import Batch, DivergenceError, Group, StudentState


def plain_metrics(
    problem: InnerProblem, student: StudentState, val: Batch, statistics: list[StepStatistics], rate: float
) -> dict[str, Any]:
    """`round_metrics` of a round without a hypergradient, with the validation error of its last student."""
    with torch.no_grad():
        error = problem.outer_error(student.theta, clone_buffers(student.buffers), val)
    return {**round_metrics(problem.group, error, statistics), "lr": rate}


def round_metrics(
    group: Group, error: Float[Tensor, ""] | None, statistics: list[StepStatistics], *, limit: float = 1e8
) -> dict[str, Any]:
    """Numbers of a round, summed over workers in one collective and read from the device once.

    Raises:
        DivergenceError: if loss, gradient or error are not finite, or beyond `limit`.
    """
    steps = torch.stack([torch.stack((s.loss, s.logit_gradient_sum)) for s in statistics]).mean(dim=0)
    shares = group.sum(torch.cat((steps, torch.zeros_like(steps[:1]) if error is None else error.reshape(1))))
    norms = torch.stack([s.gradient_norm for s in statistics])
    loss, logit_gradient_sum, val_error, gradient_norm = torch.cat((shares, norms.mean().reshape(1))).tolist()
    values = {"training loss": loss, "gradient norm": gradient_norm, "validation error": val_error}
    bad = {name: value for name, value in values.items() if not abs(value) < limit}  # also true for nan
    if bad:
        message = "the " + " and the ".join(f"{name} is {value:g}" for name, value in bad.items())
        losses = group.sum(torch.stack([s.loss for s in statistics])).tolist()
        raise DivergenceError(
            message, advice=_advice(losses, norms.tolist(), limit), is_before_steps=not isfinite(losses[0])
        )
    metrics = {"train_loss": loss, "logit_gradient_sum": logit_gradient_sum, "gradient_norm": gradient_norm}
    if error is not None:
        metrics["val_error"] = val_error
    return metrics


def _advice(losses: Sequence[float], gradient_norms: Sequence[float], limit: float) -> str | None:
    """What helps where a gradient is not finite though loss and gradients were in bounds till then: no smaller steps.

    None: smaller steps.
    """
    for loss, norm in zip(losses, gradient_norms, strict=True):
        if not abs(loss) < limit or limit <= norm < inf:
            return None
        if not isfinite(norm):
            return (
                "the loss was in bounds where its derivative was not finite, as that of a square root, a norm or a "
                "logarithm is at zero: add an epsilon to what it is taken of"
            )
    return None
