"""Exact hypergradients: the derivative of the validation error in the loss's weights, through K student steps.

One recursion, not autograd through everything. The way forward (`unroll.student_steps`) keeps theta_0 .. theta_K. The
way back carries co-states, lambda = d e / d theta_k and those of what the optimizer carries, from k = K - 1 down to 0:

    gamma   <- the co-state of step k's gradient, from the co-states behind the step
    G       <- G + (d^2 L_k / d phi d theta) gamma
    lambda  <- lambda + (d^2 L_k / d theta^2) gamma, and the optimizer's own part

gamma and the optimizer's part are a few operations on vectors (`optimizers.py`). For SGD with momentum mu and weight
decay w, with nu = d e / d v_k:

    nu      <- nu - alpha_k lambda
    G       <- G + (d^2 L_k / d phi d theta) nu
    lambda  <- lambda + (d^2 L_k / d theta^2) nu + w nu
    nu      <- mu nu

Only the two second-order products touch the network, and how they are computed is an *engine* (`engines.py`). A student
step costs three forward passes F (one forward, two backward); by that count, and a round of K = 15 steps with its
validation pass against K plain steps in parentheses (measured ones are in benchmarks/):

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

Between steps the co-states are sums over workers, and the network's products are local. That makes the hypergradient
exact on any number of workers, and needs no collective that can be differentiated.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.autograd_graph import Cuts, missing_derivative, own_functions
from l2t_ray.bilevel.engines import APPROXIMATIONS, ENGINES, Engine, EngineName, leaf
from l2t_ray.bilevel.flat import clone_buffers, recomputed_blocks
from l2t_ray.bilevel.heap import returned_memory
from l2t_ray.bilevel.optimizers import Costates, Trace
from l2t_ray.bilevel.second_order import TwiceDifferentiable
from l2t_ray.bilevel.unroll import GradientStep, InnerProblem, StepStatistics, loss_gradients, student_steps
from l2t_ray.interfaces import Batch, StudentState, UserError
from l2t_ray.timing import part


class Hypergradient(NamedTuple):
    """What one unroll gives. `error` and `gradient` are this worker's shares: they sum to the whole over workers."""

    error: Float[Tensor, ""]
    gradient: Float[Tensor, " m"]
    student: StudentState
    statistics: list[StepStatistics]


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
        problem: inner loss, outer error, optimizer and the workers' group.
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
    traces: deque[Trace] = deque(maxlen=num_steps - first)  # of the steps that are gone back through
    with _refused_cuts(problem) if engine != "finite_difference" else nullcontext(problem) as watched:
        tape: Engine = (ENGINES | APPROXIMATIONS)[engine](watched, phi, num_steps - first)
        step_gradient = _from_step(first, problem, phi, tape)
        trained, statistics = student_steps(problem, student, batches, rates, step_gradient, traces.append)
    with returned_memory() if tape.is_lean else nullcontext() as give_back:
        error, costate = _validation_gradient(problem, trained, val, give_back)
        gradient = _backward(problem, tape, problem.group.sum(costate), traces)
    return Hypergradient(error, gradient, trained, statistics)


def _validation_gradient(
    problem: InnerProblem, student: StudentState, val: Batch, give_back: Callable[[], None] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
    """This worker's shares of the validation error and of its gradient in theta.

    A validation minibatch is often several times a training minibatch, and its activations would then be the peak.
    `give_back` returns free memory to the system; None: time counts for more.
    """
    theta = leaf(student.theta)
    # The validation pass sees batch statistics and must not move the running ones.
    buffers = clone_buffers(student.buffers)
    with nullcontext() if give_back is None else recomputed_blocks():
        error = problem.outer_error(theta, buffers, val)
        if give_back is not None:
            give_back()
        (gradient,) = torch.autograd.grad(error, theta)
    return error.detach(), gradient


def _backward(
    problem: InnerProblem, tape: Engine, costate: Float[Tensor, " p"], traces: deque[Trace]
) -> Float[Tensor, " m"]:
    """This worker's share of the hypergradient, from the co-state of the trained student back over the tape.
    What the steps left in `traces` is used up."""
    costates = Costates.at_end(costate)
    total: Any = 0
    while len(traces) > 1:
        along, before = problem.optimizer.back(costates, traces.pop())
        hessian_product, mixed_product = tape.products(along)
        total = total + mixed_product
        costates = before(problem.group.sum(hessian_product))
    # Where the derivative ends no co-state is needed any more.
    along, _ = problem.optimizer.back(costates, traces.pop())
    return total + tape.mixed_product(along)


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
    phi = leaf(phi)
    start = student._replace(theta=leaf(student.theta))

    def step_gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with TwiceDifferentiable().offered():
            return loss_gradients(watched, theta, phi, buffers, batch, create_graph=True)

    with _refused_cuts(problem) as watched:
        trained, statistics = student_steps(problem, start, batches, rates, step_gradient)
    error = problem.outer_error(trained.theta, clone_buffers(trained.buffers), val)
    (gradient,) = torch.autograd.grad(error, phi)
    end = StudentState(
        trained.theta.detach(),
        trained.velocity.detach(),
        trained.buffers,
        {name: tensor.detach() for name, tensor in trained.carried.items()},
    )
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
        return loss_gradients(problem, leaf(theta), phi, buffers, batch)

    return gradient


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()
