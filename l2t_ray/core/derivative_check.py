"""Whether the derivatives that a hypergradient is made of are there, tried on one minibatch.

Autograd gives zero for a derivative that does not exist: for a backward pass that is marked `@once_differentiable`, or
that leaves PyTorch, or that detaches. A hypergradient is then off by any amount, and no engine, and no reference that
is autograd's as well, can see it. Here a step's products `H v` and `M v` (core/hypergrad.py) are held against central
differences of first derivatives, and first derivatives against differences of the loss.

Differences are taken in double precision, in which the radius may be so small that hardly a ReLU changes sides; a model
that cannot be run in it is tried in its own, with larger radii. The best agreement counts. Products are called wrong
only where the differences of two neighbouring radii agree with each other, and not with the products.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.autograd_graph import Cuts, Site, first_not_finite, own_functions, site_of, site_of_failure, traced
from l2t_ray.core.double import DoubleThroughout
from l2t_ray.core.draws import counted_draws
from l2t_ray.core.flat import clone_buffers
from l2t_ray.core.hypergrad import APPROXIMATIONS, ENGINES, EngineName
from l2t_ray.core.unroll import InnerProblem, loss_gradients
from l2t_ray.interfaces import Batch, StudentState, UserError

TOLERANCE = 0.02
"""Largest relative error that is none. Healthy models stay below 1e-6 in double precision."""

GROSS = 0.25
"""From this error on a product is refused even where no function is known to be at fault."""

SETTLED = 0.005
"""Differences of two neighbouring radii that are no further apart have settled."""

RADII = (1e-9, 1e-10, 1e-11, 1e-7)
"""Steps of the differences, as shares of the weights' norm, in the order in which they are tried. Rounding makes an
error of some 1e-16 / radius; a ReLU network of some million activations crosses kinks from 1e-8 on."""

COARSE_RADII = (3e-3, 1e-3, 3e-4, 1e-2, 3e-2)
"""In less than double precision."""


class DerivativeCheck(NamedTuple):
    """What `check_derivatives` found. Errors are relative to the larger side's norm.

    Attributes:
        first: of the loss's derivative along the direction.
        hessian: of `H v`.
        mixed: of `M v`.
        verdict: `sound`: all agree. `surrogate`: the model's gradients are not its loss's, as those of a
            straight-through estimator, and the products are the derivatives of those gradients, as they should be.
            `constant`: something that depends on the weights is no part of the graph (`detach`, `no_grad`), and the
            products take it for a constant. `unsettled`: differences do not settle, and say nothing.
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
    trial = _Trial(problem, student, phi, batch, seed)
    gradients = trial.gradients()
    if not all(tensor.isfinite().all() for tensor in gradients):
        raise UserError(_first_not_finite(trial, gradients[-1]))
    direction = _direction(gradients[0], seed)
    own: list[Any] = []
    if engine != "finite_difference":
        own = _refuse_missing(trial, direction, engine, otherwise)
    return _held_against_differences(trial, direction, engine, own, otherwise)


@dataclass(frozen=True)
class _Trial:
    """One step's derivatives in several ways, each with the same masks and running statistics."""

    problem: InnerProblem
    student: StudentState
    phi: Tensor
    batch: Batch
    seed: int
    is_double: bool = False

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Around every pass: what makes all of them see the same."""
        draws = counted_draws(self.seed + self.problem.group.rank, self.student.theta.device)
        with draws, DoubleThroughout() if self.is_double else nullcontext():
            yield

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student.theta.detach().requires_grad_(), self.phi.detach().requires_grad_()

    def loss(self, theta: Tensor, phi: Tensor) -> Tensor:
        return self.problem.inner_loss(theta, phi, clone_buffers(self.student.buffers), self.batch)[0]

    def gradients(self, theta_step: Tensor | float = 0.0, phi_step: Tensor | float = 0.0) -> tuple[Tensor, ...]:
        """The loss's gradients in theta and phi, and the loss: of all workers."""
        theta = (self.student.theta + theta_step).detach().requires_grad_()
        phi = (self.phi + phi_step).detach().requires_grad_()
        with self.alike():
            loss = self.loss(theta, phi)
            found = torch.autograd.grad(loss, (theta, phi), allow_unused=True, materialize_grads=True)
        return self._summed(*found, loss.detach())

    def products(self, direction: Tensor, engine: EngineName = "store") -> tuple[Tensor, ...]:
        """`H v` and `M v` as the engine takes them: of all workers."""
        tape = (ENGINES | APPROXIMATIONS)[engine](self.problem, self.phi, 1)
        with self.alike():
            tape.gradient(self.student.theta, clone_buffers(self.student.buffers), self.batch)
            products = tape.products(direction.to(self.student.theta))
        return self._summed(*products)

    def in_double(self) -> "tuple[_Trial, tuple[Tensor, ...]]":
        """The same in double precision, where the model can be run in it, else as it is; and its gradients."""

        def double(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        theta, velocity, buffers = self.student
        student = StudentState(double(theta), double(velocity), {name: double(b) for name, b in buffers.items()})
        batch = Batch(*map(double, self.batch))
        trial = replace(self, student=student, phi=double(self.phi), batch=batch, is_double=True)
        try:
            return trial, trial.gradients()
        except Exception:  # whatever a model says of numbers that it was not made for
            return self, self.gradients()

    def _summed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        total = self.problem.group.sum(torch.cat([t.reshape(-1) for t in tensors]))
        pieces = total.split([t.numel() for t in tensors])
        return tuple(piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True))


def _direction(gradient: Tensor, seed: int) -> Float[Tensor, " p"]:
    """A unit vector, half of it along the gradient, where a co-state has much of itself, half anywhere."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(gradient.device)
    along = gradient.double()
    direction = anywhere / anywhere.norm() + along / along.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return direction / direction.norm()


# -- what the graph itself shows


def _refuse_missing(trial: _Trial, direction: Tensor, engine: EngineName, otherwise: str) -> list[Any]:
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
    if cuts:
        with traced():  # again, for the lines
            cuts = _watched_products(trial, direction)[1]
        raise UserError(_missing(_sites(cuts), "", otherwise))
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


def _watched_products(trial: _Trial, direction: Tensor) -> tuple[tuple[Tensor, ...], list[Any], list[Any]]:
    """The products, the nodes that were seen to cut them, and those with a backward pass of their own."""
    cuts, own = Cuts(), []

    def inner_loss(*arguments: Any) -> Any:
        loss, logits = trial.problem.inner_loss(*arguments)
        cuts.watch(loss)
        own.extend(own_functions(loss))
        return loss, logits

    watched = replace(trial, problem=replace(trial.problem, inner_loss=inner_loss))
    return watched.products(direction), cuts.nodes, own


def _failed(trial: _Trial, direction: Tensor, error: RuntimeError, otherwise: str) -> str:
    with traced() as said, suppress(RuntimeError):
        trial.products(direction)
    named = re.search(r"aten::(\w+)|derivative for '(\w+)'", str(error))
    site = site_of_failure(said) or (Site(named[1] or named[2]) if named else None)
    return _missing(str(site or "one of its functions"), _first_line(error), otherwise)


def _second_not_finite(trial: _Trial, direction: Tensor) -> Site | str:
    """Where the second derivative is not finite, by PyTorch's own operators, whose names a user knows."""
    theta, phi = trial.leaves()
    with trial.alike(), traced():
        buffers = clone_buffers(trial.student.buffers)
        gradient, *_ = loss_gradients(trial.problem, theta, phi, buffers, trial.batch, create_graph=True)
        along = direction.to(gradient)
        return first_not_finite(gradient, (theta, phi), along) or "the student"


def _first_not_finite(trial: _Trial, loss: Tensor) -> str:
    if not loss.isfinite():
        return (
            f"the student's loss is {loss.item():g} before its first step; look for inputs that are not finite, and "
            "at the model's first weights."
        )
    theta, phi = trial.leaves()
    with trial.alike(), traced():
        site = first_not_finite(trial.loss(theta, phi), (theta, phi)) or "the student"
    return f"the derivative of {site} is not finite, {_EPSILON}."


# -- what finite differences show


class _Difference(NamedTuple):
    """Along the direction, of the loss, of its gradient in theta, of that in phi: central differences, or products."""

    slope: Tensor
    hessian: Tensor
    mixed: Tensor


def _held_against_differences(
    given: _Trial, direction: Tensor, engine: EngineName, own: list[Any], otherwise: str
) -> DerivativeCheck:
    trial, (gradient, phi_gradient, _) = given.in_double()
    size = trial.student.theta.norm().item() or 1.0
    direction = direction.to(gradient)
    # engines differ in rounding alone, but for the one that takes differences itself
    products = trial.products(direction) if engine != "finite_difference" else None
    # what changes a gradient by less than a ten-thousandth on a way as long as the weights are is nothing
    floors = [1e-3 * gradient.norm(), 1e-4 * gradient.norm() / size, 1e-4 * phi_gradient.norm() / size]
    differences: dict[float, _Difference] = {}
    errors: dict[float, _Errors] = {}
    for radius in RADII if trial.is_double else COARSE_RADII:
        differences[radius] = difference = _difference(trial, direction, radius * size)
        hessian, mixed = products or (difference.hessian, difference.mixed)
        predicted = _Difference(gradient @ direction, hessian, mixed)
        errors[radius] = _distances(predicted, difference, floors)
        if max(errors[radius]) < TOLERANCE:
            return DerivativeCheck(*errors[radius], "sound", "")
    radius = _settled(differences, floors)
    if radius is None:
        first, hessian, mixed = (min(column) for column in zip(*errors.values(), strict=True))
        return DerivativeCheck(first, hessian, mixed, "unsettled", _unsettled(trial, gradient, engine))
    if errors[radius].first > TOLERANCE and (
        products is None or _is_adjoint(trial, direction, products, differences[radius], radius * size)
    ):
        return DerivativeCheck(*errors[radius], "surrogate", _surrogate(errors[radius], engine))
    if own or (errors[radius].first <= TOLERANCE and max(errors[radius]) > GROSS):
        sites = "one of the student's functions"
        if own:
            with traced():
                sites = _sites(_watched_products(given, direction)[2])
        measured = f"by finite differences the products are off by {max(errors[radius]):.0%}"
        raise UserError(_missing(sites, measured, otherwise))
    return DerivativeCheck(*errors[radius], "constant", _constant(errors[radius]))


def _difference(trial: _Trial, direction: Tensor, step: float) -> _Difference:
    (*ahead, loss_ahead), (*behind, loss_behind) = (trial.gradients(way * step * direction) for way in (1, -1))
    along_theta, along_phi = ((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
    return _Difference((loss_ahead - loss_behind) / (2 * step), along_theta, along_phi)


class _Errors(NamedTuple):
    """As in `DerivativeCheck`."""

    first: float
    hessian: float
    mixed: float


def _distances(one: _Difference, other: _Difference, floors: list[Tensor]) -> _Errors:
    distances = []
    for a, b, floor in zip(one, other, floors, strict=True):
        larger = torch.maximum(torch.maximum(a.norm(), b.norm()), floor)
        distance = (a - b).norm() / larger if larger > 0 else larger
        distances.append(distance.nan_to_num(torch.inf).item())
    return _Errors(*distances)


def _settled(differences: dict[float, _Difference], floors: list[Tensor]) -> float | None:
    """A radius at which the differences are those of the next smaller one as well; None: there is none."""
    radii = sorted(differences)
    for smaller, radius in pairwise(radii):
        if max(_distances(differences[smaller], differences[radius], floors)) < SETTLED:
            return radius
    return None


def _is_adjoint(
    trial: _Trial, direction: Tensor, products: tuple[Tensor, ...], difference: _Difference, step: float
) -> bool:
    """Whether the products are the derivatives of the model's gradients, whatever these are the gradients of.

    With g the gradient in theta and J its derivative, a reverse pass gives `J^T v`, a difference `J v`. The two are
    held against each other by one number each, `<v, J v>`, and in the same way in phi.
    """
    along_phi = products[1] / products[1].norm().clamp(min=torch.finfo(products[1].dtype).tiny)
    ahead, behind = (trial.gradients(phi_step=way * step * along_phi)[0] for way in (1, -1))
    pairs = [
        (direction @ products[0], direction @ difference.hessian),
        (along_phi @ products[1], direction @ (ahead - behind) / (2 * step)),
    ]
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)


# -- sentences

_EPSILON = (
    "as that of a norm, a square root or a power is at zero: add an epsilon to what it is taken of, "
    "as in x / (x.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()"
)

_REMEDIES = (
    (r"compile|donated|aot", "give the model itself, not what torch.compile made of it"),
    (r"dot_product|attention", "call it under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"),
    (r"embedding_bag", "use torch.nn.Embedding and the mean over its rows"),
    (r"cudnn_rnn", "call it under torch.backends.cudnn.flags(enabled=False)"),
)
_REMEDY = "write its backward pass with PyTorch's operations, without NumPy, detach() or once_differentiable"


def _missing(sites: str, reason: str, otherwise: str) -> str:
    remedy = next((cure for pattern, cure in _REMEDIES if re.search(pattern, f"{sites} {reason}", re.I)), _REMEDY)
    return (
        f"a second derivative is missing, and a hypergradient needs it: that of {sites}"
        + (f" ({reason})" if reason else "")
        + f"; {remedy}"
        + (f", or {otherwise}" if otherwise else "")
        + "."
    )


def _surrogate(errors: _Errors, engine: EngineName) -> str:
    text = (
        f"the student's gradients are not those of its loss (off by {errors.first:.0%}), as with a straight-through "
        "estimator; their own derivatives are right"
    )
    if engine in ("forward_over_reverse", "finite_difference"):
        raise UserError(f"{text}, but not as engine {engine} takes them; take store or recompute.")
    return f"{text}, and so is the hypergradient."


def _constant(errors: _Errors) -> str:
    return (
        f"the student's second derivatives are off by {max(errors):.0%}: something that depends on its weights is "
        "computed under no_grad or detached, and the hypergradient takes it for a constant."
    )


def _unsettled(trial: _Trial, gradient: Tensor, engine: EngineName) -> str:
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


def _sites(nodes: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(site_of(node)) for node in nodes))


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line[:160].rstrip(". ")
