"""Exact hypergradients: the derivative of the validation error in the loss's weights, through K student steps.

One recursion, not autograd through everything. The way forward (`unroll.sgd_steps`) keeps theta_0 .. theta_K. The way
back carries two co-states, lambda = d e / d theta_k and nu = d e / d v_k, from k = K - 1 down to 0:

    nu      <- nu - alpha_k lambda
    G       <- G + (d^2 L_k / d phi d theta) nu
    lambda  <- lambda + (d^2 L_k / d theta^2) nu + w nu
    nu      <- mu nu

Only the two second-order products touch the network, and how they are computed is an *engine*. A student step costs
three forward passes F (one forward, two backward); by that count, and a round of K = 15 steps with its validation
pass against K plain steps in parentheses (measured ones are in benchmarks/):

- `store` keeps each step's graph on the way forward: 9 F a step (3.2 times), fastest while memory lasts. That is, for
  each of K steps, three activations a convolution with its norm (what enters it, what it gives, and the gradient
  there): one and a half times what a plain step keeps;
- `recompute` builds it again on the way back: 12 F (4.3 times), activation memory of one step whatever K. The
  validation pass, whose minibatch is larger, keeps only what the student's blocks were given (`recomputed_blocks`),
  and on CPUs freed memory goes back to the system from there on (`heap.returned_memory`);
- `forward_over_reverse` takes both products as one directional derivative of the gradient: 12 F, as `recompute`, but
  no graph of a graph, and it knows every operator that has a forward-mode derivative.

These are exact. What others use in place of the exact products is here as well, to be compared with:

- `one_step`: the last step alone, as the one-step lookaheads of DARTS, Meta-Weight-Net and SAMA: 3 F a step, and 2 F
  once (1.3 times). Its error is all that earlier steps contribute. `horizon` is the dial between it and exactness.
- `finite_difference`: both products by a central difference of first derivatives (DARTS): 9 F, memory of a plain
  step. Its error falls with the square of the radius until rounding takes over, and with ReLU students kinks do
  before. It costs what `store` costs: memory is all it saves, and `recompute` saves that exactly.

At the first step that the derivative goes back to, lambda is not needed any more: there the product in phi is taken
alone, 5 F in place of 9 F, for it needs the student's directional derivative only.

Between steps lambda and nu are sums over workers, and the network's products are local. That makes the hypergradient
exact on any number of workers, and needs no collective that can be differentiated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from l2t_ray.bilevel.autograd_graph import Cuts, missing_derivative, own_functions
from l2t_ray.bilevel.draws import Draws, drawn_from, standing_draws
from l2t_ray.bilevel.flat import clone_buffers, recomputed_blocks
from l2t_ray.bilevel.heap import returned_memory
from l2t_ray.bilevel.second_order import SecondOrderOperators, TwiceDifferentiable
from l2t_ray.bilevel.unroll import GradientStep, InnerProblem, StepStatistics, loss_gradients, sgd_steps
from l2t_ray.interfaces import Batch, StudentState, UserError
from l2t_ray.timing import part

EngineName = Literal["store", "recompute", "forward_over_reverse", "one_step", "finite_difference"]


class Hypergradient(NamedTuple):
    """What one unroll gives. `error` and `gradient` are this worker's shares: they sum to the whole over workers."""

    error: Float[Tensor, ""]
    gradient: Float[Tensor, " m"]
    student: StudentState
    statistics: list[StepStatistics]


@runtime_checkable
class Engine(Protocol):
    """Records steps on the way forward and gives their second-order products on the way back, last step first.

    Attributes:
        is_lean: memory counts for more than time.
    """

    is_lean: bool

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As `unroll.GradientStep`; remembers the step."""
        ...

    def products(self, nu: Float[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, " m"]]:
        """`(d^2 L / d theta^2) nu` and `(d^2 L / d phi d theta) nu` at the latest remembered step, which is then
        forgotten; this worker's shares."""
        ...

    def mixed_product(self, nu: Float[Tensor, " p"]) -> Float[Tensor, " m"]:
        """The second of `products` alone."""
        ...


class _Graph(NamedTuple):
    """A step's gradient with what it can be differentiated in."""

    gradient: Tensor
    theta: Tensor
    phi: Tensor


class StoreEngine:
    """Keeps the graph of each step's gradient. The steps are cut apart, so each graph is used once and freed."""

    is_lean = False

    def __init__(self, problem: InnerProblem, phi: Tensor, num_steps: int):
        del num_steps  # graphs cannot be placed
        self._problem, self._phi = problem, phi
        self._operators = SecondOrderOperators()
        self._graphs: list[_Graph] = []

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        graph, loss, logit_gradient = step_graph(self._problem, theta, self._phi, buffers, batch, self._operators)
        self._graphs.append(graph)
        return graph.gradient.detach().clone(), loss, logit_gradient

    def products(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        return _vector_products(self._graphs.pop(), nu)

    def mixed_product(self, nu: Tensor) -> Tensor:
        return _mixed_product(self._graphs.pop(), nu, self._operators)


class _Start(NamedTuple):
    """Where a step started: enough to take it again."""

    theta: Tensor
    buffers: dict[str, Tensor]
    batch: Batch
    draws: Draws

    @contextmanager
    def drawn_again(self) -> Iterator[None]:
        """Inside, dropout has the masks that it had on the way forward."""
        with drawn_from(self.draws, self.theta.device):
            yield


class RecomputeEngine:
    """Keeps only each step's starting point, minibatch and place in the random streams, and builds its graph again
    when asked.

    The starting points lie in rows of tensors that are made once. Made at each step, they would be scattered among the
    activations that come and go, and keep the memory between them from being used for larger ones.
    """

    is_lean = True

    def __init__(self, problem: InnerProblem, phi: Tensor, num_steps: int):
        self._problem, self._phi, self._num_steps = problem, phi, num_steps
        self._operators = SecondOrderOperators()
        self._rows: dict[str, Tensor] = {}
        self._batches: list[Batch] = []
        self._draws: list[Draws] = []

    def gradient(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        # The engine's own copy of the buffers: another forward pass must not move the running statistics again.
        start = {"": theta, **buffers}
        if not self._rows:
            self._rows = {name: tensor.new_empty(self._num_steps, *tensor.shape) for name, tensor in start.items()}
        for name, tensor in start.items():
            self._rows[name][len(self._batches)] = tensor
        self._batches.append(batch)
        self._draws.append(standing_draws(theta.device))
        # A graph, though it is dropped: with one, some derivatives are rounded differently, and training amplifies
        # that. So every engine takes the same steps to the last bit, and a run may change engines.
        graph, loss, logit_gradient = step_graph(self._problem, theta, self._phi, buffers, batch, self._operators)
        return graph.gradient.detach().clone(), loss, logit_gradient

    def products(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        return _vector_products(self._graph_again(), nu)

    def mixed_product(self, nu: Tensor) -> Tensor:
        return _mixed_product(self._graph_again(), nu, self._operators)

    def _last_start(self) -> _Start:
        batch = self._batches.pop()
        start = {name: rows[len(self._batches)] for name, rows in self._rows.items()}
        return _Start(start.pop(""), start, batch, self._draws.pop())

    def _graph_again(self) -> _Graph:
        start = self._last_start()
        with start.drawn_again():
            return step_graph(self._problem, start.theta, self._phi, start.buffers, start.batch, self._operators)[0]


class ForwardOverReverseEngine(RecomputeEngine):
    """As `recompute`, with both products from one directional derivative of the joint gradient.

    d/dt grad_{theta, phi} L(theta + t nu, phi) at t = 0 is (H nu, M nu): mixed partial derivatives commute.
    """

    def products(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        return self._along(nu, (0, 1))

    def mixed_product(self, nu: Tensor) -> Tensor:
        return self._along(nu, (1,))[0]

    def _along(self, nu: Tensor, arguments: tuple[int, ...]) -> Any:
        start = self._last_start()

        def loss(theta: Tensor, phi: Tensor) -> Tensor:
            with TwiceDifferentiable().offered():
                return self._problem.inner_loss(theta, phi, clone_buffers(start.buffers), start.batch)[0]

        def gradients(theta: Tensor) -> tuple[Tensor, ...]:
            return grad(loss, argnums=arguments)(theta, self._phi)

        with start.drawn_again():
            return jvp(gradients, (start.theta,), (nu,))[1]


class FiniteDifferenceEngine(RecomputeEngine):
    """As `recompute`, with the products approximated by `[g(theta + r nu) - g(theta - r nu)] / 2 r`.

    g is the joint gradient in theta and phi, and r = `radius` / ||nu|| (Liu et al., DARTS, ICLR 2019, footnote 2).
    """

    radius = 0.01

    def products(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        start = self._last_start()
        norm = torch.linalg.vector_norm(nu)
        step = torch.where(norm > 0, self.radius / norm, torch.ones_like(norm))  # nu = 0: any step gives zero
        ahead = self._joint_gradient(start, start.theta + step * nu)
        behind = self._joint_gradient(start, start.theta - step * nu)
        along_theta, along_phi = ((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
        return along_theta, along_phi

    def mixed_product(self, nu: Tensor) -> Tensor:
        return self.products(nu)[1]

    def _joint_gradient(self, start: _Start, theta: Tensor) -> tuple[Tensor, Tensor]:
        theta, phi = _leaf(theta), _leaf(self._phi)
        with start.drawn_again():
            loss, _ = self._problem.inner_loss(theta, phi, clone_buffers(start.buffers), start.batch)
        return torch.autograd.grad(loss, (theta, phi))  # pyright: ignore[reportReturnType]


ENGINES: dict[str, type] = {
    "store": StoreEngine,
    "recompute": RecomputeEngine,
    "forward_over_reverse": ForwardOverReverseEngine,
}
"""The exact ones."""

APPROXIMATIONS: dict[str, type] = {
    "one_step": StoreEngine,  # with a horizon of one
    "finite_difference": FiniteDifferenceEngine,
}


@part("hypergradient")
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
        engine: how second-order products are computed (module docstring). The exact ones agree to rounding.
        horizon: steps to go back; fewer than K truncates the derivative. None: all.

    Returns:
        Shares of error and hypergradient, the trained student, and statistics of the steps.

    Raises:
        ValueError: if there are no batches, or `horizon` is not positive.
        UserError: if a function in the student cuts the second derivative off (`derivative_check` sees more).
    """
    if not batches:
        raise ValueError("hypergradient needs at least one training minibatch, got none.")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    num_steps = len(batches)
    first = max(0, num_steps - (1 if engine == "one_step" else horizon or num_steps))
    with _refused_cuts(problem) if engine != "finite_difference" else nullcontext(problem) as watched:
        tape: Engine = (ENGINES | APPROXIMATIONS)[engine](watched, phi, num_steps - first)
        trained, statistics = sgd_steps(problem, student, batches, rates, _from_step(first, problem, phi, tape))
    with returned_memory() if tape.is_lean else nullcontext() as give_back:
        error, costate = _validation_gradient(problem, trained, val, give_back)
        gradient = _backward(problem, tape, problem.group.sum(costate), rates[first:])
    return Hypergradient(error, gradient, trained, statistics)


def _validation_gradient(
    problem: InnerProblem, student: StudentState, val: Batch, give_back: Callable[[], None] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
    """This worker's shares of the validation error and of its gradient in theta.

    A validation minibatch is often several times a training minibatch, and its activations would then be the peak.
    `give_back` returns free memory to the system; None: time counts for more.
    """
    theta = _leaf(student.theta)
    # The validation pass sees batch statistics and must not move the running ones.
    buffers = clone_buffers(student.buffers)
    with nullcontext() if give_back is None else recomputed_blocks():
        error = problem.outer_error(theta, buffers, val)
        if give_back is not None:
            give_back()
        (gradient,) = torch.autograd.grad(error, theta)
    return error.detach(), gradient


def _backward(
    problem: InnerProblem, tape: Engine, costate: Float[Tensor, " p"], rates: Sequence[float]
) -> Float[Tensor, " m"]:
    """This worker's share of the hypergradient, from the co-state of the trained student back over the tape."""
    velocity_costate = torch.zeros_like(costate)
    total: Any = 0
    for rate in reversed(rates[1:]):
        velocity_costate = velocity_costate - rate * costate
        hessian_product, mixed_product = tape.products(velocity_costate)
        total = total + mixed_product
        costate = costate + problem.group.sum(hessian_product) + problem.weight_decay * velocity_costate
        velocity_costate = problem.momentum * velocity_costate
    # Where the derivative ends no co-state is needed any more.
    return total + tape.mixed_product(velocity_costate - rates[0] * costate)


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
        with TwiceDifferentiable().offered():
            return loss_gradients(watched, theta, phi, buffers, batch, create_graph=True)

    with _refused_cuts(problem) as watched:
        trained, statistics = sgd_steps(problem, start, batches, rates, step_gradient)
    error = problem.outer_error(trained.theta, clone_buffers(trained.buffers), val)
    (gradient,) = torch.autograd.grad(error, phi)
    end = StudentState(trained.theta.detach(), trained.velocity.detach(), trained.buffers)
    return Hypergradient(error.detach(), gradient, end, [StepStatistics(*map(_detached, s)) for s in statistics])


@contextmanager
def _refused_cuts(problem: InnerProblem) -> Iterator[InnerProblem]:
    """A problem to take steps of. If the first one's graph is cut by a function with a backward pass of its own, that
    is said at the end: what autograd would give there is zero."""
    is_first = True

    def inner_loss(*arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal is_first
        loss, logits = problem.inner_loss(*arguments)
        if is_first:
            cuts.watch(own_functions(loss))
            is_first = False
        return loss, logits

    with Cuts() as cuts:
        yield replace(problem, inner_loss=inner_loss)
    if cuts.sites():
        raise UserError(missing_derivative(", ".join(cuts.sites())))


def _from_step(first: int, problem: InnerProblem, phi: Tensor, tape: Engine) -> GradientStep:
    """Steps on the tape from number `first` on. Those before are plain training, and nothing of them is kept."""
    numbers = count()

    def gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if next(numbers) >= first:
            return tape.gradient(theta, buffers, batch)
        return loss_gradients(problem, _leaf(theta), phi, buffers, batch)

    return gradient


def step_graph(
    problem: InnerProblem,
    theta: Tensor,
    phi: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Batch,
    operators: SecondOrderOperators,
) -> tuple[_Graph, Tensor, Tensor]:
    """A step's gradient to be differentiated again; loss and logit gradient as in `loss_gradients`."""
    theta, phi = _leaf(theta), _leaf(phi)
    with operators.offered():
        gradient, loss, logit_gradient = loss_gradients(problem, theta, phi, buffers, batch, create_graph=True)
    return _Graph(gradient, theta, phi), loss, logit_gradient


def _vector_products(graph: _Graph, nu: Tensor) -> tuple[Tensor, Tensor]:
    """`nu^T d gradient / d (theta, phi)` by a second reverse pass. Zero where the gradient does not depend on them."""
    gradient, theta, phi = graph
    if not gradient.requires_grad:
        return torch.zeros_like(theta), torch.zeros_like(phi)
    products: Any = torch.autograd.grad(gradient, (theta, phi), nu, allow_unused=True, materialize_grads=True)
    return products


def _mixed_product(graph: _Graph, nu: Tensor, operators: SecondOrderOperators) -> Tensor:
    """`nu^T d gradient / d phi`, which needs no more of the student than its derivative along nu."""
    gradient, _, phi = graph
    if not gradient.requires_grad:
        return torch.zeros_like(phi)
    with operators.mixed_only():
        (product,) = torch.autograd.grad(gradient, phi, nu, allow_unused=True, materialize_grads=True)
    return product


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()
