"""One hypergradient and one round, by this project, by its paper's released procedure, and by three libraries.

Every contender gets the same student, loss network, minibatches and learning rate, and gives the derivative of the
validation error in the loss network's weights. The libraries are used in the form that their documentation shows.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from l2t_ray.bilevel.flat import FlatModule, clone_buffers
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.unroll import InnerProblem, loss_gradients, student_steps
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.lstm_teacher import LSTMTeacher, preprocess_gradient
from l2t_ray.core.teacher import LocalTeacher, LstmRule
from l2t_ray.interfaces import Batch, StudentState
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.students.resnet import ResNet
from l2t_ray.tasks.classification import Classification

RATE = 0.1


@dataclass(frozen=True)
class Case:
    """What is differentiated: CIFAR shapes, random images and labels, a student as initialised."""

    depth: int = 8
    widths: str = "narrow"
    num_steps: int = 15
    batch_size: int = 25
    val_batch_size: int = 100
    num_classes: int = 10
    loss: str = "default"  # or "paper": sigmoid pairs, leaky ReLU, constant label entries
    dtype: str = "float32"

    @property
    def title(self) -> str:
        parts = [f"ResNet-{self.depth} {self.widths}", f"K={self.num_steps}", f"B={self.batch_size}"]
        return " ".join(parts + [f"C={self.num_classes}"] * (self.num_classes != 10))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Setting:
    """A case with its tensors drawn."""

    def __init__(self, case: Case):
        dtype = getattr(torch, case.dtype)
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.case = case
        self.module = ResNet(case.depth, num_classes=case.num_classes, widths=case.widths).to(dtype)  # pyright: ignore
        self.student = FlatModule(self.module)
        is_paper = case.loss == "paper"
        self.loss_network = DynamicLossNetwork(
            init="cross_entropy",
            pairs="sigmoid" if is_paper else "softmax",
            activation="leaky_relu" if is_paper else "silu",
            label_table=None if is_paper else case.num_classes,
        ).to(dtype)
        self.phi = self.loss_network.phi.detach().clone()

        def batch(size: int) -> Batch:  # drawn in float32, so that both precisions see the same images
            return Batch(
                torch.randn(size, 3, 32, 32, generator=generator).to(dtype),
                torch.randint(case.num_classes, (size,), generator=generator),
                torch.full((size,), 1 / size, dtype=dtype),
                torch.arange(size),
            )

        self.batches = [batch(case.batch_size) for _ in range(case.num_steps)]
        self.val = batch(case.val_batch_size)
        self.rates = [RATE] * case.num_steps
        theta = self.student.initial()
        self.start = StudentState(theta, torch.zeros_like(theta), self.student.initial_buffers())
        self.problem = InnerProblem(self._inner_loss, self._outer_error, SingleProcess())
        self.plain_problem = InnerProblem(self._cross_entropy, self._outer_error, SingleProcess())

    def _logits(self, theta: Tensor, buffers: Any, batch: Batch) -> Tensor:
        return self.student(theta, buffers, batch.inputs, training=True)

    def _inner_loss(self, theta: Tensor, phi: Tensor, buffers: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self._logits(theta, buffers, batch)
        return (batch.weights * self.loss_network.losses_at(phi, logits, batch.targets)).sum(), logits

    def _cross_entropy(self, theta: Tensor, phi: Tensor, buffers: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self._logits(theta, buffers, batch)
        return (batch.weights * F.cross_entropy(logits, batch.targets, reduction="none")).sum(), logits

    def _outer_error(self, theta: Tensor, buffers: Any, batch: Batch) -> Tensor:
        return Classification().error(self._logits(theta, buffers, batch), batch, SingleProcess())

    def teacher(self) -> LocalTeacher:
        """The default teacher: two LSTM cells of 20 units and a linear head, learned over ten rounds at a time."""
        lstm = LSTMTeacher((20, 20), head="linear")
        return LocalTeacher(self.phi, LstmRule(lstm, len(self.phi), step_size=1e-2, learning_rate=1e-3, horizon=10))


Contender = Callable[[], Tensor]
"""Does its work once and gives the hypergradient."""


def plain(setting: Setting) -> Contender:
    """K steps of SGD on cross-entropy, without any meta-learning: what the rest is measured by."""
    no_phi = torch.zeros(0)

    def step_gradient(theta: Tensor, buffers: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return loss_gradients(setting.plain_problem, theta.detach().requires_grad_(), no_phi, buffers, batch)

    def run() -> Tensor:
        student_steps(setting.plain_problem, setting.start, setting.batches, setting.rates, step_gradient)
        return no_phi

    return run


def plain_compiled(setting: Setting) -> Contender:
    """The same K steps as anyone would write them for `torch.compile`: compiled module, backward pass, torch's SGD.

    Compiling is not part of the turn. The module trains on from turn to turn; what it costs does not depend on that.
    """
    module = deepcopy(setting.module).train()
    compiled = torch.compile(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

    def run() -> Tensor:
        for batch in setting.batches:
            optimizer.zero_grad()
            losses = F.cross_entropy(compiled(batch.inputs), batch.targets, reduction="none")
            (batch.weights * losses).sum().backward()
            optimizer.step()
        return torch.zeros(0)

    run()
    return run


def ours(engine: Any) -> Callable[[Setting], Contender]:
    def build(setting: Setting) -> Contender:
        s = setting
        return lambda: hypergradient(s.problem, s.start, s.phi, s.batches, s.val, rates=s.rates, engine=engine).gradient

    return build


def autograd(setting: Setting) -> Contender:
    """Plain autograd through the whole unroll, one backward pass."""
    s = setting
    return lambda: naive_hypergradient(s.problem, s.start, s.phi, s.batches, s.val, rates=s.rates).gradient


def released(setting: Setting, *, on_hypergradient: Callable[[], None] | None = None) -> Contender:
    """The released code's procedure: a backward pass through the unroll for each of the loss network's five tensors;
    the paper's LSTM makes a step of it, and a second stored unroll from the same start under the new loss gives the
    LSTM's own gradient. The first graph stays alive meanwhile, as it does there.

    Without `on_hypergradient`, which is called in between, the procedure ends with the hypergradient.
    """
    s = setting
    parts = s.loss_network.spec.parts
    sizes = [weight.numel() for weight in parts.network.matrices(parts.split(s.phi).network)]
    sizes[-1] += len(s.phi) - sum(sizes)  # a label-pair table goes with the last layer: five tensors in any case
    lstm = LSTMTeacher().to(s.phi.dtype)
    adam = torch.optim.Adam(lstm.parameters(), lr=1e-3)

    def error_under(phi: Tensor) -> Tensor:
        def step_gradient(theta: Tensor, buffers: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            return loss_gradients(s.problem, theta, phi, buffers, batch, create_graph=True)

        start = s.start._replace(theta=s.start.theta.clone().requires_grad_())
        trained, _ = student_steps(s.problem, start, s.batches, s.rates, step_gradient)
        return s.problem.outer_error(trained.theta, clone_buffers(trained.buffers), s.val)

    def run() -> Tensor:
        tensors = [piece.clone().requires_grad_() for piece in s.phi.split(sizes)]
        error = error_under(torch.cat(tensors))
        gradient = torch.cat([torch.autograd.grad(error, tensor, retain_graph=True)[0] for tensor in tensors])
        if on_hypergradient is not None:
            on_hypergradient()
            output, _ = lstm(preprocess_gradient(gradient), lstm.initial_state(len(gradient)))
            outcome = error_under(s.phi - 1e-3 * output)
            adam.zero_grad()
            outcome.backward(inputs=list(lstm.parameters()))
            adam.step()
        return gradient

    return run


def higher(setting: Setting) -> Contender:
    import higher as library

    s = setting

    def run() -> Tensor:
        s.module.train()
        optimizer = torch.optim.SGD(s.module.parameters(), lr=RATE)
        with library.innerloop_ctx(s.module, optimizer) as (student, steps):
            for batch in s.batches:
                steps.step(s.loss_network.loss(student(batch.inputs), batch.targets))
            error = F.cross_entropy(student(s.val.inputs), s.val.targets)
            return torch.autograd.grad(error, s.loss_network.phi)[0]

    return run


def torchopt(setting: Setting) -> Contender:
    import torchopt as library

    s = setting

    def run() -> Tensor:
        s.module.train()
        optimizer = library.FuncOptimizer(library.sgd(lr=RATE))
        weights = {name: p.detach().clone().requires_grad_() for name, p in s.module.named_parameters()}
        buffers = clone_buffers(s.start.buffers)
        for batch in s.batches:
            logits = functional_call(s.module, (weights, buffers), (batch.inputs,))
            weights = optimizer.step(s.loss_network.loss(logits, batch.targets), weights)
        logits = functional_call(s.module, (weights, buffers), (s.val.inputs,))
        return torch.autograd.grad(F.cross_entropy(logits, s.val.targets), s.loss_network.phi)[0]

    return run


def betty(setting: Setting) -> Contender:
    """Iterative differentiation, Betty's exact form: the student is an `IterativeProblem` of K unrolled steps."""
    import logging

    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem, IterativeProblem

    logging.disable(logging.INFO)
    s = setting
    found: list[Tensor] = []

    class Student(IterativeProblem):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.fmodule(self.params, self.buffers, inputs)

        def training_step(self, batch: Any) -> Tensor:
            inputs, targets = batch
            return self.loss.module.loss(self.forward(inputs), targets)

    class Loss(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.student(inputs), targets)

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            found.append(self.module.phi.grad.clone())

    def run() -> Tensor:
        s.module.train()
        s.module.load_state_dict({**s.student.views(s.start.theta), **clone_buffers(s.start.buffers)})
        optimizer = torch.optim.SGD(s.module.parameters(), lr=RATE)
        student = Student(
            "student",
            Config(unroll_steps=s.case.num_steps, retain_graph=True),
            module=s.module,
            optimizer=optimizer,
            train_data_loader=[(b.inputs, b.targets) for b in s.batches],
        )
        loss = Loss(
            "loss",
            Config(first_order=False),
            module=s.loss_network,
            optimizer=torch.optim.SGD(s.loss_network.parameters(), lr=0.0),
            train_data_loader=[(s.val.inputs, s.val.targets)],
        )
        dependencies = {"u2l": {loss: [student]}, "l2u": {student: [loss]}}
        found.clear()
        Engine([loss, student], EngineConfig(train_iters=s.case.num_steps), dependencies).run()
        return found[-1]

    return run


LIBRARIES: dict[str, Callable[[Setting], Contender]] = {"higher": higher, "torchopt": torchopt, "betty": betty}

HYPERGRADIENTS: dict[str, Callable[[Setting], Contender]] = {
    "plain": plain,
    "plain_compiled": plain_compiled,
    "store": ours("store"),
    "recompute": ours("recompute"),
    "forward_over_reverse": ours("forward_over_reverse"),
    "one_step": ours("one_step"),
    "finite_difference": ours("finite_difference"),
    "autograd": autograd,
    "released": released,
    **LIBRARIES,
}
PLAIN = ("plain", "plain_compiled")
APPROXIMATE = ("one_step", "finite_difference")


def is_installed(name: str) -> bool:
    return name not in LIBRARIES or find_spec(name) is not None
