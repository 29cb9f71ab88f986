"""Whether the derivatives that a hypergradient is made of are there, tried on one minibatch.

Autograd gives zero for a derivative that does not exist: for a backward pass that is marked `@once_differentiable`, or
that leaves PyTorch, or that detaches. A hypergradient is then off by any amount, and no engine, and no reference that
is autograd's as well, can see it. Here a step's products `H v` and `M v` (hypergradient.py) are held against central
differences of first derivatives, and first derivatives against differences of the loss.

Differences are taken in double precision, in which the radius may be so small that hardly a ReLU changes sides; a model
that cannot be run in it is tried in its own, with larger radii. The best agreement counts. Products are called wrong
only where the differences of two neighbouring radii agree with each other, and not with the products.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.autograd_graph import (
    Cuts,
    Site,
    first_not_finite,
    graph_nodes,
    missing_derivative,
    own_functions,
    site_of,
    site_of_failure,
    traced,
)
from l2t_ray.bilevel.derivative_trial import (
    COARSE_RADII,
    RADII,
    SETTLED,
    TOLERANCE,
    DerivativeTrial,
    Difference,
    Errors,
    KeptFromWeights,
    central_difference,
    direction_for,
    distances,
    kept_from_weights,
    settled_radius,
)
from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.bilevel.engines import EngineName
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.functions_alone import without_second_derivative
from l2t_ray.bilevel.unroll import InnerProblem, loss_gradients, student_steps
from l2t_ray.interfaces import Batch, StudentState, UserError

GROSS = 0.25
"""From this error on a product is refused even where no function is known to be at fault."""


class DerivativeCheck(NamedTuple):
    """What `check_derivatives` found. Errors are relative to the larger side's norm.

    Attributes:
        first: of the loss's derivative along the direction.
        hessian: of `H v`.
        mixed: of `M v`.
        verdict: `sound`: all agree. `surrogate`: the model's gradients are not its loss's, as those of a
            straight-through estimator are not, and the products are made of the same. `constant`: the gradients are
            right, but something in them that depends on the weights, now or of a pass before, is no part of the graph
            (`no_grad`, an average in a buffer), and the products take it for a constant. `unsettled`: differences do
            not settle, and say nothing.
        sentence: the same for a user; empty where there is nothing to say.
    """

    first: float
    hessian: float
    mixed: float
    verdict: Literal["sound", "surrogate", "constant", "unsettled"]
    sentence: str


def check_derivatives(
    problem: InnerProblem,
    student: StudentState,
    phi: Float[Tensor, " m"],
    batch: Batch,
    *,
    engine: EngineName = "store",
    seed: int = 0,
    otherwise: str = "",
) -> DerivativeCheck:
    """Tries the first and second derivatives of one step, as the engine will take them. Leaves everything as it is.

    It costs what some four steps of engine `store` cost, two of them in double precision. All workers of a group call
    it, with the same `seed`; they come to the same verdict.

    Args:
        batch: one training minibatch.
        seed: of the direction, and with the worker's rank of what is drawn inside the student.
        otherwise: what else can be done about a missing derivative, in the caller's names of settings.

    Raises:
        UserError: if a first or second derivative is missing or not finite; names the function at fault and the
            model's line that calls it, where they can be found. What the model itself raises in a plain forward and
            backward pass is passed on.
    """
    if problem.reweigh is not None:
        batch = problem.reweigh(student.theta, clone_buffers(student.buffers), batch)
    trial = DerivativeTrial(problem, student, phi, batch, seed)
    gradients = trial.gradients()
    if not all(tensor.isfinite().all() for tensor in gradients):
        raise UserError(_first_not_finite(trial, gradients[-1]))
    direction = direction_for(gradients[0], seed)
    own: list[Any] = []
    if engine != "finite_difference":
        own = _refuse_missing_derivative(trial, direction, engine, otherwise)
    return _held_against_differences(trial, direction, engine, own, otherwise)


# -- what the graph itself shows


def _refuse_missing_derivative(
    trial: DerivativeTrial, direction: Tensor, engine: EngineName, otherwise: str
) -> list[Any]:
    """Takes the products in the model's own precision, and refuses what is seen to be missing or not finite.

    Returns:
        Nodes of the model's functions with a backward pass of their own: more about them cannot be seen.
    """
    try:
        products, cuts, own = _watched_products(trial, direction)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(_failed(trial, direction, error, otherwise)) from None
    if cuts.sites():
        with traced():  # again, for the lines
            cuts = _watched_products(trial, direction)[1]
        raise UserError(missing_derivative(", ".join(cuts.sites()), "", otherwise))
    if engine == "forward_over_reverse":
        try:
            products = trial.products(direction, engine)
        except (RuntimeError, NotImplementedError) as error:
            reason = _first_line(error)
            raise UserError(
                f"engine forward_over_reverse cannot be used ({reason}); take store or recompute."
            ) from None
    if not all(product.isfinite().all() for product in products):
        raise UserError(f"the second derivative of {_second_not_finite(trial, direction)} is not finite, {_EPSILON}.")
    return own


def _watched_products(trial: DerivativeTrial, direction: Tensor) -> tuple[tuple[Tensor, ...], Cuts, list[Any]]:
    """The products, what was seen to cut them, and the nodes with a backward pass of their own."""
    own: list[Any] = []

    def inner_loss(*arguments: Any) -> Any:
        loss, logits = trial.problem.inner_loss(*arguments)
        cuts.watch(graph_nodes(loss))
        own.extend(own_functions(loss))
        return loss, logits

    watched = replace(trial, problem=replace(trial.problem, inner_loss=inner_loss))
    with Cuts() as cuts:
        return watched.products(direction), cuts, own


def _failed(trial: DerivativeTrial, direction: Tensor, error: RuntimeError, otherwise: str) -> str:
    with traced() as said, suppress(RuntimeError):
        trial.products(direction)
    named = re.search(r"aten::(\w+)|derivative for '(\w+)'", str(error))
    site = site_of_failure(said) or (Site(named[1] or named[2]) if named else None)
    return missing_derivative(str(site or "one of its functions"), _first_line(error), otherwise)


def _second_not_finite(trial: DerivativeTrial, direction: Tensor) -> Site | str:
    """Where the second derivative is not finite, by PyTorch's own operators, whose names a user knows."""
    theta, phi = trial.leaves()
    with trial.alike(), traced():
        buffers = clone_buffers(trial.student.buffers)
        gradient, *_ = loss_gradients(trial.problem, theta, phi, buffers, trial.batch, create_graph=True)
        along = direction.to(gradient)
        return first_not_finite(gradient, (theta, phi), along) or "the student"


def _first_not_finite(trial: DerivativeTrial, loss: Tensor) -> str:
    if not loss.isfinite():
        return (
            f"the student's loss is {loss.item():g} before its first step; look for inputs that are not finite, and "
            "at the model's first weights."
        )
    theta, phi = trial.leaves()
    with trial.alike(), traced():
        site = first_not_finite(trial.loss(theta, phi), (theta, phi)) or "the student"
    return f"the derivative of {site} is not finite, {_EPSILON}."


def not_finite_advice(
    problem: InnerProblem,
    student: StudentState,
    phi: Float[Tensor, " m"],
    batches: Sequence[Batch],
    rates: Sequence[float],
) -> str | None:
    """Where a hypergradient is not finite: what to do about the second derivative that is not, in the model's names.

    Takes the round's steps once more, under PyTorch's own operators. None: every step's second derivative is finite,
    and it is their product over the steps that has left the range of numbers.
    """
    sites: list[Site] = []

    def step_gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        theta, weights = (t.detach().requires_grad_() for t in (theta, phi))
        gradient, loss, logit_gradient = loss_gradients(problem, theta, weights, buffers, batch, create_graph=True)
        site = first_not_finite(gradient, (theta, weights), direction_for(gradient.detach(), 0).to(gradient))
        sites.extend([] if site is None else [site])
        return gradient.detach(), loss, logit_gradient

    with unmoved_draws(student.theta.device), traced():
        student_steps(problem, student, batches, rates, step_gradient)
    return f"the second derivative of {sites[0]} is not finite, {_EPSILON}" if sites else None


# -- what finite differences show


def _held_against_differences(
    given: DerivativeTrial, direction: Tensor, engine: EngineName, own: list[Any], otherwise: str
) -> DerivativeCheck:
    trial, (gradient, phi_gradient, _) = given.in_double()
    size = trial.student.theta.norm().item() or 1.0
    direction = direction.to(gradient)
    # engines differ in rounding alone, but for the one that takes differences itself
    products = trial.products(direction) if engine != "finite_difference" else None
    # what changes a gradient by less than a ten-thousandth on a way as long as the weights are is nothing
    floors = [1e-3 * gradient.norm(), 1e-4 * gradient.norm() / size, 1e-4 * phi_gradient.norm() / size]
    differences: dict[float, Difference] = {}
    errors: dict[float, Errors] = {}
    for radius in RADII if trial.is_double else COARSE_RADII:
        differences[radius] = difference = central_difference(trial, direction, radius * size)
        hessian, mixed = products or (difference.hessian, difference.mixed)
        predicted = Difference(gradient @ direction, hessian, mixed)
        errors[radius] = distances(predicted, difference, floors)
        if max(errors[radius]) < TOLERANCE:
            kept = kept_from_weights(trial, direction, radius * size, gradient)
            return DerivativeCheck(*errors[radius], *(("constant", _kept(kept)) if kept else ("sound", "")))
    radius = settled_radius(differences, floors)
    if own and trial.is_double and (radius is None or errors[radius].first > TOLERANCE):
        _refuse_opaque(given, trial, direction, own, otherwise)
    if radius is None:
        first, hessian, mixed = (min(column) for column in zip(*errors.values(), strict=True))
        return DerivativeCheck(first, hessian, mixed, "unsettled", _unsettled(trial, gradient, engine))
    off = errors[radius]
    sites = _own_sites(given, direction) if own else ""
    if off.first > TOLERANCE:
        return DerivativeCheck(*off, "surrogate", _surrogate(off, sites))
    if own or max(off) > GROSS:
        reason = f"by finite differences the products are off by {max(off):.0%}"
        raise UserError(missing_derivative(sites or "one of the student's functions", reason, otherwise))
    return DerivativeCheck(*off, "constant", _constant(off))


def _refuse_opaque(
    given: DerivativeTrial, trial: DerivativeTrial, direction: Tensor, own: list[Any], otherwise: str
) -> None:
    """Where differences of the whole say nothing: the model's functions, each by itself."""
    opaque = without_second_derivative(trial, own)
    if opaque is not None:
        reason = "its backward pass is right, and the derivative of that is not, by finite differences of it alone"
        raise UserError(missing_derivative(_own_sites(given, direction, opaque), reason, otherwise))


def _own_sites(trial: DerivativeTrial, direction: Tensor, function: Any = None) -> str:
    """
    Args:
        function: the only one that counts; None: all do.
    """
    with traced():
        own = _watched_products(trial, direction)[2]
    own = [node for node in own if function is None or getattr(node, "_forward_cls", None) is function]
    return ", ".join(dict.fromkeys(str(site_of(node)) for node in own))


# -- sentences

_EPSILON = (
    "as that of a norm, a square root or a power is at zero: add an epsilon to what it is taken of, "
    "as in x / (x.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()"
)


def _surrogate(errors: Errors, sites: str) -> str:
    return (
        f"the student's gradients are not those of its loss (off by {errors.first:.0%}), as with a straight-through "
        "estimator, a gradient hook or a detached part"
        + (f", here perhaps {sites}" if sites else "")
        + f"; second derivatives, and with them the hypergradient, follow suit (off by {max(errors[1:]):.0%})."
    )


def _constant(errors: Errors) -> str:
    return (
        f"the student's second derivatives are off by {max(errors):.0%}: something that depends on its weights is "
        "computed under no_grad or detached, and the hypergradient takes it for a constant."
    )


def _kept(kept: KeptFromWeights) -> str:
    return (
        f"the model keeps {' and '.join(kept.names[:3])} from pass to pass, which follow its weights, and computes "
        f"with them: through them a step's loss depends on earlier weights, by {kept.share:.1%} of its slope, and the "
        "hypergradient takes them for constants."
    )


def _unsettled(trial: DerivativeTrial, gradient: Tensor, engine: EngineName) -> str:
    again = trial.gradients()[0]
    if (again - gradient).norm() <= SETTLED * gradient.norm():
        return "finite differences of the student's gradients do not settle, so its second derivatives are unchecked."
    text = (
        "the student's gradient is another one each time it is taken on the same minibatch: it draws from a generator "
        "of its own, or keeps something from pass to pass"
    )
    if engine not in ("store", "one_step"):
        raise UserError(f"{text}; engine {engine} takes a step's pass more than once, so take store.")
    return f"{text}, so its second derivatives are unchecked."


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0].rstrip(". ")
