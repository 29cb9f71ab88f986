"""Exact hypergradients: the derivative of the validation error in the loss's weights, through K student steps.

One recursion, not autograd through everything. The way forward (`unroll.sgd_steps`) keeps theta_0 .. theta_K. The way
back carries two co-states, lambda = d e / d theta_k and nu = d e / d v_k, from k = K - 1 down to 0:

    nu      <- nu - alpha_k lambda
    G       <- G + (d^2 L_k / d phi d theta) nu
    lambda  <- lambda + (d^2 L_k / d theta^2) nu + w nu
    nu      <- mu nu

Only the two second-order products touch the network, and how they are computed is an *engine*:

- `store` keeps each step's graph on the way forward: fastest while memory lasts, which grows with K;
- `recompute` builds it again on the way back: activation memory of one step, one more forward and backward pass;
- `forward_over_reverse` takes both products as one directional derivative of the gradient: no graph of a graph.

Between steps lambda and nu are sums over workers, and the network's products are local. That makes the hypergradient
exact on any number of workers, and needs no collective that can be differentiated.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from l2t_ray.core.flat import clone_buffers
from l2t_ray.core.unroll import InnerProblem, StepStatistics, loss_gradients, sgd_steps
from l2t_ray.interfaces import Batch, StudentState

EngineName = Literal["store", "recompute", "forward_over_reverse"]


class Hypergradient(NamedTuple):
    """What one unroll gives. `error` and `gradient` are this worker's shares: they sum to the whole over workers."""

    error: Float[Tensor, ""]
    gradient: Float[Tensor, " m"]
    student: StudentState
    statistics: list[StepStatistics]


@runtime_checkable
class Engine(Protocol):
    """Records each step on the way forward and gives its second-order products on the way back."""

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As `unroll.GradientStep`; remembers the step."""
        ...

    def products(self, step: int, nu: Float[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, " m"]]:
        """`(d^2 L / d theta^2) nu` and `(d^2 L / d phi d theta) nu` at remembered step `step`, this worker's shares."""
        ...


class StoreEngine:
    """Keeps the graph of each step's gradient. The steps are cut apart, so each graph is used once and freed."""

    def __init__(self, problem: InnerProblem, phi: Tensor):
        self._problem, self._phi = problem, phi
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        theta, phi = _leaf(theta), _leaf(self._phi)
        gradient, loss, logit_gradient = loss_gradients(self._problem, theta, phi, buffers, batch, create_graph=True)
        self._steps.append((gradient, theta, phi))
        return gradient.detach().clone(), loss, logit_gradient

    def products(self, step: int, nu: Tensor) -> tuple[Tensor, Tensor]:
        gradient, theta, phi = self._steps[step]
        products = _vector_products(gradient, theta, phi, nu)
        del self._steps[step:]  # the way back never returns to a later step: its graph can go
        return products


class RecomputeEngine:
    """Keeps only each step's starting point and minibatch, and builds its graph again when asked."""

    def __init__(self, problem: InnerProblem, phi: Tensor):
        self._problem, self._phi = problem, phi
        self._steps: list[tuple[Tensor, dict[str, Tensor], Batch]] = []

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        self._steps.append((theta, clone_buffers(buffers), batch))
        return loss_gradients(self._problem, _leaf(theta), self._phi, buffers, batch)

    def products(self, step: int, nu: Tensor) -> tuple[Tensor, Tensor]:
        theta, buffers, batch = self._steps[step]
        theta, phi = _leaf(theta), _leaf(self._phi)
        # The buffers are this engine's own copy: a second forward pass must not move the running statistics again.
        gradient, _, _ = loss_gradients(self._problem, theta, phi, buffers, batch, create_graph=True)
        return _vector_products(gradient, theta, phi, nu)


class ForwardOverReverseEngine(RecomputeEngine):
    """As `recompute`, with both products from one directional derivative of the joint gradient.

    d/dt grad_{theta, phi} L(theta + t nu, phi) at t = 0 is (H nu, M nu): mixed partial derivatives commute.
    """

    def products(self, step: int, nu: Tensor) -> tuple[Tensor, Tensor]:
        theta, buffers, batch = self._steps[step]

        def loss(theta: Tensor, phi: Tensor) -> Tensor:
            return self._problem.inner_loss(theta, phi, clone_buffers(buffers), batch)[0]

        def joint_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
            return grad(loss, argnums=(0, 1))(theta, self._phi)

        return jvp(joint_gradient, (theta,), (nu,))[1]


ENGINES: dict[str, type] = {
    "store": StoreEngine,
    "recompute": RecomputeEngine,
    "forward_over_reverse": ForwardOverReverseEngine,
}


def hypergradient(
    problem: InnerProblem,
    student: StudentState,
    phi: Float[Tensor, " m"],
    batches: Sequence[Batch],
    val: Batch,
    *,
    rates: Sequence[float],
    engine: EngineName = "store",
    horizon: int | None = None,
) -> Hypergradient:
    """Trains the student for one step a batch under the loss `phi`, and differentiates its validation error in `phi`.

    Args:
        problem: inner loss, outer error, momentum, weight decay and the workers' group.
        student: where to start; left as it is.
        phi: weights of the loss network; left as they are.
        batches: K training minibatches.
        val: the validation minibatch.
        rates: the student's learning rate at each of the K steps.
        engine: how second-order products are computed (module docstring). All agree to rounding.
        horizon: steps to go back; fewer than K truncates the derivative. None: all.

    Returns:
        Shares of error and hypergradient, the trained student, and statistics of the steps.

    Raises:
        ValueError: if there are no batches, or `horizon` is not positive.
    """
    if not batches:
        raise ValueError("hypergradient needs at least one training minibatch, got none.")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    tape: Engine = ENGINES[engine](problem, phi)
    trained, statistics = sgd_steps(problem, student, batches, rates, tape.gradient)

    theta = _leaf(trained.theta)
    # The validation pass sees batch statistics and must not move the running ones.
    error = problem.outer_error(theta, clone_buffers(trained.buffers), val)
    (costate,) = torch.autograd.grad(error, theta)
    costate = problem.group.sum(costate)

    velocity_costate = torch.zeros_like(costate)
    total = torch.zeros_like(phi)
    num_steps = len(batches)
    for step in reversed(range(max(0, num_steps - (horizon or num_steps)), num_steps)):
        velocity_costate = velocity_costate - rates[step] * costate
        hessian_product, mixed_product = tape.products(step, velocity_costate)
        total = total + mixed_product
        costate = costate + problem.group.sum(hessian_product) + problem.weight_decay * velocity_costate
        velocity_costate = problem.momentum * velocity_costate
    return Hypergradient(error.detach(), total, trained, statistics)


def naive_hypergradient(
    problem: InnerProblem,
    student: StudentState,
    phi: Float[Tensor, " m"],
    batches: Sequence[Batch],
    val: Batch,
    *,
    rates: Sequence[float],
) -> Hypergradient:
    """The same by autograd through one graph of all K steps: slow, hungry and obviously right. One process only.

    It is the reference the engines are held against, in the tests and by `--check-hypergradient`.
    """
    phi = _leaf(phi)
    start = StudentState(_leaf(student.theta), student.velocity, student.buffers)

    def step_gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return loss_gradients(problem, theta, phi, buffers, batch, create_graph=True)

    trained, statistics = sgd_steps(problem, start, batches, rates, step_gradient)
    error = problem.outer_error(trained.theta, clone_buffers(trained.buffers), val)
    (gradient,) = torch.autograd.grad(error, phi)
    end = StudentState(trained.theta.detach(), trained.velocity.detach(), trained.buffers)
    return Hypergradient(error.detach(), gradient, end, [StepStatistics(*map(_detached, s)) for s in statistics])


def _vector_products(gradient: Tensor, theta: Tensor, phi: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    """`nu^T d gradient / d (theta, phi)` by a second reverse pass. Zero where the gradient does not depend on them."""
    if not gradient.requires_grad:
        return torch.zeros_like(theta), torch.zeros_like(phi)
    products: Any = torch.autograd.grad(gradient, (theta, phi), nu, allow_unused=True)
    along_theta, along_phi = products
    return (
        torch.zeros_like(theta) if along_theta is None else along_theta,
        torch.zeros_like(phi) if along_phi is None else along_phi,
    )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()
