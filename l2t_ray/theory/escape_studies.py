"""Escape watched and timed: against the step size, against the start, and at each of several saddles."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.theory.alternating import alternating_step, descent_path, gradient_of, simultaneous_step
from l2t_ray.theory.escape import escape_mode, escape_times, log_slope, predicted_escape_time, random_starts
from l2t_ray.theory.growth_bound import bound_of_conclusion_1, negative_curvature, sharp_bound
from l2t_ray.theory.saddles import Saddle, monkey, quartic
from l2t_ray.theory.smoothness import Smoothness, estimate_smoothness, hessian_smoothness

START_RADIUS, ESCAPE_RADIUS = 1e-6, 0.1
# The slope is fitted until here, where the curvature of the function still bends the line by less than 1e-4.
FIT_RADIUS = 1e-4
# Of 1 / C_max, at which growth is watched: well inside the step-size condition.
STEP_FRACTION = 0.5


class EscapeByStepSize(NamedTuple):
    """Median steps from `START_RADIUS` to `ESCAPE_RADIUS` on the quartic, and what theory says of them."""

    eta: float
    alternating: float
    alternating_low: float  # 10th and 90th percentile over the starts
    alternating_high: float
    simultaneous: float
    predicted: float  # log(R / r_0) / log lambda_max
    conclusion_1: float  # the same with the bound of Eq. (6) in the place of lambda_max: an upper limit


class EscapeByStart(NamedTuple):
    """Median steps to `ESCAPE_RADIUS` from ever closer starts: a strict saddle beside the degenerate one."""

    start_radius: float
    strict: float
    degenerate: float


class GrowthAtSaddle(NamedTuple):
    """How alternating descent leaves one strict saddle."""

    name: str
    size: int
    split: int
    eta: float
    c: float
    c_max: float
    gamma: float
    factor: float  # lambda_max(M^-1 G)
    gain: float  # (factor - 1) / (eta gamma)
    bound_sharp: float
    bound_conclusion_1: float
    log_factor: float
    slope: float  # that of log |P_d(u)|, of the start with the largest error
    slope_error: float  # relative to log_factor
    escape_time: float
    predicted_time: float


def escape_by_step_size(
    etas: Sequence[float], *, num_starts: int, generator: torch.Generator, max_steps: int = 20_000
) -> list[EscapeByStepSize]:
    """Escape times of alternating and plain gradient descent on the quartic saddle, from the same starts."""
    saddle = quartic()
    hessian, gradient = saddle.hessian(), gradient_of(saddle.function)
    gamma, smoothness = negative_curvature(hessian), hessian_smoothness(hessian, split=saddle.split)
    starts = random_starts(saddle.point, num_starts, radius=START_RADIUS, generator=generator)
    every_start = starts.repeat(len(etas), 1)
    every_eta = torch.tensor(etas, dtype=torch.float64).repeat_interleave(num_starts)

    def times(step: Callable[[Tensor], Tensor]) -> Tensor:
        taken = escape_times(step, every_start, saddle.point, radius=ESCAPE_RADIUS, max_steps=max_steps)
        return _or_infinite(taken).view(len(etas), num_starts)

    alternating = times(partial(alternating_step, gradient, eta=every_eta, split=saddle.split))
    simultaneous = times(lambda u: simultaneous_step(gradient, u, every_eta))
    predict = partial(predicted_escape_time, start_radius=START_RADIUS, radius=ESCAPE_RADIUS)
    return [
        EscapeByStepSize(
            eta=eta,
            alternating=_quantile(alternating[index], 0.5),
            alternating_low=_quantile(alternating[index], 0.1),
            alternating_high=_quantile(alternating[index], 0.9),
            simultaneous=_quantile(simultaneous[index], 0.5),
            predicted=predict(escape_mode(hessian, eta, split=saddle.split).factor).item(),
            conclusion_1=predict(bound_of_conclusion_1(gamma, smoothness, eta)).item(),
        )
        for index, eta in enumerate(etas)
    ]


def escape_by_start(
    radii: Sequence[float], *, num_starts: int, generator: torch.Generator, max_steps: int = 6_000
) -> list[EscapeByStart]:
    """Escape times from spheres of these radii, each function at its own `STEP_FRACTION / C_max`."""
    medians = []
    for saddle in (quartic(), monkey()):
        eta = _step_size(saddle, generator=generator)
        starts = [random_starts(saddle.point, num_starts, radius=radius, generator=generator) for radius in radii]
        step = partial(alternating_step, gradient_of(saddle.function), eta=eta, split=saddle.split)
        times = escape_times(step, torch.cat(starts), saddle.point, radius=ESCAPE_RADIUS, max_steps=max_steps)
        medians.append([_quantile(row, 0.5) for row in _or_infinite(times).view(len(radii), num_starts)])
    return [EscapeByStart(*row) for row in zip(radii, *medians, strict=True)]


def control_slope(*, generator: torch.Generator, num_steps: int = 100) -> float:
    """The fastest growth of the log-distance a step at the degenerate saddle, from `START_RADIUS`: nearly zero."""
    saddle = monkey()
    eta = _step_size(saddle, generator=generator)
    starts = random_starts(saddle.point, 20, radius=START_RADIUS, generator=generator)
    step = partial(alternating_step, gradient_of(saddle.function), eta=eta, split=saddle.split)
    distances = torch.linalg.vector_norm(descent_path(step, starts, num_steps), dim=-1)
    return log_slope(distances).max().item()


def growth_at(
    saddle: Saddle, *, num_starts: int, generator: torch.Generator
) -> tuple[GrowthAtSaddle, Float[Tensor, " k"]]:
    """Watches alternating descent leave `saddle`, at `STEP_FRACTION / C_max`.

    Returns:
        What was measured and predicted, and `|P_d(u^k)|` of one start, step by step until it is out.
    """
    hessian, split = saddle.hessian(), saddle.split
    smoothness = _smoothness(saddle, generator=generator)
    eta = STEP_FRACTION / smoothness.c_max.item()
    gamma = negative_curvature(hessian)
    mode = escape_mode(hessian, eta, split=split)
    step = partial(alternating_step, gradient_of(saddle.function), eta=eta, split=split)
    starts = random_starts(saddle.point, num_starts, radius=START_RADIUS, generator=generator)

    num_fit = int(predicted_escape_time(mode.factor, start_radius=START_RADIUS, radius=FIT_RADIUS).item())
    predicted = predicted_escape_time(mode.factor, start_radius=START_RADIUS, radius=ESCAPE_RADIUS).item()
    times = escape_times(step, starts, saddle.point, radius=ESCAPE_RADIUS, max_steps=int(3 * predicted))
    projected = ((descent_path(step, starts, num_fit) - saddle.point) @ mode.left).abs()
    slopes = log_slope(projected)
    errors = (slopes / math.log(mode.factor) - 1).abs()
    watched = descent_path(step, starts[:1], int(times[0])) if times[0] >= 0 else starts[None, :1]
    row = GrowthAtSaddle(
        name=saddle.name,
        size=len(saddle.point),
        split=split,
        eta=eta,
        c=smoothness.c.item(),
        c_max=smoothness.c_max.item(),
        gamma=gamma.item(),
        factor=mode.factor,
        gain=(mode.factor - 1) / (eta * gamma.item()),
        bound_sharp=sharp_bound(gamma, eta).item(),
        bound_conclusion_1=bound_of_conclusion_1(gamma, smoothness, eta).item(),
        log_factor=math.log(mode.factor),
        slope=slopes[errors.argmax()].item(),
        slope_error=errors.max().item(),
        escape_time=_quantile(_or_infinite(times), 0.5),
        predicted_time=predicted,
    )
    return row, ((watched[:, 0] - saddle.point) @ mode.left).abs()


def _smoothness(saddle: Saddle, *, generator: torch.Generator) -> Smoothness:
    return estimate_smoothness(
        saddle.function, saddle.point, split=saddle.split, radius=ESCAPE_RADIUS, num_points=64, generator=generator
    )


def _step_size(saddle: Saddle, *, generator: torch.Generator) -> float:
    return STEP_FRACTION / _smoothness(saddle, generator=generator).c_max.item()


def _or_infinite(times: Tensor) -> Tensor:
    """Points that never came out count as slower than all that did."""
    return times.double().where(times >= 0, torch.inf)


def _quantile(values: Tensor, share: float) -> float:
    return values.quantile(share, interpolation="nearest").item()
