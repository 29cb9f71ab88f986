"""Engines: how the second-order products of the recursion are computed (`hypergradient.py` has their costs)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from l2t_ray.bilevel.draws import RandomStates, drawn_from, standing_draws
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.second_order import SecondOrderOperators, TwiceDifferentiable
from l2t_ray.bilevel.unroll import InnerProblem, loss_gradients
from l2t_ray.interfaces import Batch

EngineName = Literal["store", "recompute", "forward_over_reverse", "one_step", "finite_difference"]


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
    draws: RandomStates

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
        self._draws: list[RandomStates] = []

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
        theta, phi = leaf(theta), leaf(self._phi)
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


def step_graph(
    problem: InnerProblem,
    theta: Tensor,
    phi: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Batch,
    operators: SecondOrderOperators,
) -> tuple[_Graph, Tensor, Tensor]:
    """A step's gradient to be differentiated again; loss and logit gradient as in `loss_gradients`."""
    theta, phi = leaf(theta), leaf(phi)
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


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()
