"""L2T-DLN on one page: the student trains under the loss network, the teacher rewrites it.

One round, with student theta, loss network phi and validation error e:

1. unroll     K SGD steps of the student under L_phi
2. gradient   g = d e(theta_K) / d phi, exactly, through all K steps
3. propose    the teacher moves phi along what it makes of g
4. learn      the teacher hears how its proposal turned out

`pipelined` keeps theta_K of that one unroll; the hypergradient of the next round, taken at the proposed phi on new
data, is how the proposal turned out. `lookahead` (the released code) unrolls a second time from the same theta_0 on
the same minibatches under the proposed phi; that unroll's end is kept and its hypergradient is learned from.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from l2t_ray.core.derivative_check import not_finite_advice
from l2t_ray.core.flat import FlatModule
from l2t_ray.core.hypergrad import (
    EngineName,
    Hypergradient,
    agreed_engine,
    hypergradient,
)
from l2t_ray.core.loss_network import DynamicLossNetwork, memory_weight
from l2t_ray.core.memory import nothing_remembered, remembered
from l2t_ray.core.reweight import Metric, Positive, class_centers, importance_weights
from l2t_ray.core.round_metrics import plain_metrics, round_metrics
from l2t_ray.core.timing import part
from l2t_ray.core.unroll import InnerProblem, plain_steps
from l2t_ray.interfaces import (
    Batch,
    Data,
    DivergenceError,
    Group,
    Method,
    MethodState,
    Metrics,
    RoundBatches,
    StudentState,
    Task,
    Teacher,
    loss_in_use,
)

_LOG = logging.getLogger(__name__)

DRY_RATE = 1e-3
Schedule = Literal["pipelined", "lookahead"]
RateSchedule = Callable[[int], float]
"""The student's learning rate at a step, counted from the first step of training."""


@dataclass(frozen=True)
class StudentSgd:
    """How the student is trained: learning rate a step, momentum, weight decay, steps a round."""

    rate: RateSchedule
    num_steps: int
    momentum: float = 0.0
    weight_decay: float = 0.0

    def rates(self, index: int, num_batches: int) -> list[float]:
        return [self.rate(index * self.num_steps + k) for k in range(num_batches)]


@dataclass(frozen=True)
class Reweighting:
    """Data reweighting by likeness to class centres (supplement, Sec. 5).

    Attributes:
        metric: similarity of a sample's embedding to the centre of its class.
        positive: what is done with negative similarities (`reweight.importance_weights`).
        refresh_every: centres are taken anew in each round whose number it divides, and at the start of each epoch.
    """

    metric: Metric
    positive: Positive = "clamp"
    refresh_every: int = 25


@dataclass(frozen=True)
class WarmUp:
    """Rounds before the loss is learned, in which the teacher rests.

    Attributes:
        rounds: how many.
        method: what trains the student in them. It must carry nothing of its own.
        loss_start: from the student at their end, phi and the round's number, what is added to phi from then on
            (`interfaces.MethodState`), the same on every worker; None: nothing.
        renewed_at: later rounds that begin with a new `loss_start`.
    """

    rounds: int
    method: Method
    loss_start: Callable[[StudentState, Float[Tensor, " m"], int], Float[Tensor, " m"]] | None = None
    renewed_at: Sequence[int] = ()


class L2TDLN:
    """The method. The student's model is a template here: its state travels in `MethodState`."""

    def __init__(
        self,
        student: FlatModule,
        task: Task,
        data: Data,
        loss_network: DynamicLossNetwork,
        teacher: Teacher | None,
        sgd: StudentSgd,
        group: Group,
        *,
        schedule: Schedule = "pipelined",
        engine: EngineName | Literal["auto"] = "store",
        horizon: int | None = None,
        reweighting: Reweighting | None = None,
        keeps_buffers: bool = True,
        warm_up: WarmUp | None = None,
        is_clean: Bool[Tensor, " images"] | None = None,
        num_images: int | None = None,
        device: torch.device | str = "cpu",
    ):
        """See `docs/notation.md` for the symbols.

        Args:
            loss_network: architecture of the loss; its weights are the teacher's to say.
            teacher: None: the loss stays as `loss_network` has it, but for what the warm-up adds. There is then no
                hypergradient, and a round costs what it costs under any fixed loss.
            engine: how second-order products are computed (`hypergrad`); `auto`: chosen, and logged, at the first
                round; the workers agree on one.
            horizon: student steps the hypergradient goes back through; None: all of a round's.
            reweighting: None: uniform weights.
            keeps_buffers: False reproduces the released code, which trains a copy and copies back parameters alone,
                so that batch-norm statistics stay as initialised (docs/released.md, D5).
            warm_up: None: the loss is learned from the first round on.
            is_clean: by image of the training set (`Batch.indices`), whether its label is to be trusted; where such
                images are trained on, it is with plain cross-entropy, as in `FixedLoss`. None: no image is.
            num_images: of the training set, where the loss has a memory. A row must then be an image.
        """
        self._student, self._task, self._data = student, task, data
        self._loss_network, self._teacher, self._sgd, self._group = loss_network, teacher, sgd, group
        self._schedule, self._horizon = schedule, horizon
        self._engine: EngineName | Literal["auto"] = engine
        self._reweighting, self._keeps_buffers, self._device = reweighting, keeps_buffers, device
        self._warm_up, self._is_clean = warm_up, is_clean
        self._num_images = num_images
        self._problem = InnerProblem(self._inner_loss, self._outer_error, group, sgd.momentum, sgd.weight_decay)
        if loss_network.spec.memory is not None and num_images is None:
            raise ValueError("a loss with a memory needs num_images, the number of images to remember.")

    def first_problem(self, batches: RoundBatches) -> InnerProblem:
        """What the student minimises in a first round, as if there were no warm-up; for checks from outside."""
        return self._in_state(self._with_centers(self._with_memory(self.init(), batches), 0))

    @property
    def loss_network(self) -> DynamicLossNetwork:
        """The architecture of the loss; its weights are where a dry round begins, and not what is learned."""
        return self._loss_network

    def dry_problem(self, batches: RoundBatches) -> tuple[InnerProblem, StudentState, Float[Tensor, " m"]]:
        """Problem, student and loss of a first round, as if there were no warm-up and all samples counted alike. The
        teacher is not asked: the loss is the loss network's own."""
        state = self._with_memory(self.init(), batches)
        inner_loss = partial(self._inner_loss, memory=state.extra.get("memory"))
        phi = self._loss_network.phi.detach().to(self._device)
        return replace(self._problem, inner_loss=inner_loss), state.student, phi

    def dry_unroll(self, batches: RoundBatches) -> Hypergradient:
        """The hypergradient of `dry_problem`, by the engine in use, for steps that are too small to diverge."""
        problem, student, phi = self.dry_problem(batches)
        return hypergradient(
            problem,
            student,
            phi,
            batches.train,
            batches.val,
            rates=[DRY_RATE] * len(batches.train),
            engine=self._chosen_engine(problem, student, phi, batches),
            horizon=self._horizon,
        )

    def init(self) -> MethodState:
        starts = self._warm_up is not None and self._warm_up.loss_start is not None
        extra = {"loss_start": torch.zeros_like(self._loss_network.phi.detach(), device=self._device)} if starts else {}
        if self._num_images is not None and self._loss_network.spec.memory is not None:
            extra["memory"] = nothing_remembered(self._num_images, self._data.num_classes, self._device)
        return MethodState(initial_student(self._student, self._device), extra)

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        """One round of training (module docstring)."""
        state, warm_up = self._with_memory(state, batches), self._warm_up
        if warm_up is not None and index < warm_up.rounds:
            warmed, metrics = warm_up.method.round(MethodState(state.student, {}), batches, index)
            return state._replace(student=warmed.student), metrics
        if warm_up is not None and warm_up.loss_start is not None and index in (warm_up.rounds, *warm_up.renewed_at):
            start = warm_up.loss_start(state.student, self._taught_phi(), index)
            state = state._replace(extra={**state.extra, "loss_start": start})
        state = self._with_centers(state, index)
        problem = self._in_state(state)
        rates = self._sgd.rates(index, len(batches.train))
        if self._teacher is None:
            return self._untaught_round(problem, state, batches, rates)

        current = self._teacher.read()
        result = self._unroll(problem, state, current.phi, batches, rates)
        gradient = result.gradient
        with part("hypergradient"):
            error = result.error.item()  # on a GPU this waits until the way back is done
        try:
            proposed = self._teacher.propose(current.version, gradient, error)
            if self._schedule == "lookahead":
                result = self._unroll(problem, state, proposed.phi, batches, rates)
                self._teacher.learn(proposed.version, result.gradient)
            else:
                self._teacher.learn(current.version)
        except DivergenceError as failure:
            raise self._explained(failure, problem, state, current.phi, result, batches, rates) from None

        metrics = round_metrics(self._group, result.error, result.statistics)
        phi_step = proposed.phi - current.phi
        metrics["lr"] = rates[-1]
        metrics["hypergradient_norm"] = torch.linalg.vector_norm(self._group.sum(gradient.clone())).item()
        metrics["phi_step_norm"] = torch.linalg.vector_norm(phi_step).item()
        metrics["phi_step_max"] = phi_step.abs().max().item()
        if self._loss_network.spec.memory is not None:
            in_use = loss_in_use(current.phi.to(self._device), state)
            metrics["memory_weight"] = memory_weight(self._loss_network.spec, in_use).item()
        return self._after(state, result.student), metrics

    def _explained(
        self,
        failure: DivergenceError,
        problem: InnerProblem,
        state: MethodState,
        phi: Float[Tensor, " m"],
        result: Hypergradient,
        batches: RoundBatches,
        rates: list[float],
    ) -> DivergenceError:
        """The same with advice: where steps or error were bad already, theirs, else about the second derivative."""
        try:
            round_metrics(self._group, result.error, result.statistics)
        except DivergenceError as earlier:
            advice, is_before_steps = earlier.advice, earlier.is_before_steps
        else:
            phi, is_before_steps = loss_in_use(phi.to(self._device), state), False
            advice = not_finite_advice(problem, state.student, phi, batches.train, rates)
        return DivergenceError(str(failure), advice=advice, is_before_steps=is_before_steps)

    def _untaught_round(
        self, problem: InnerProblem, state: MethodState, batches: RoundBatches, rates: list[float]
    ) -> tuple[MethodState, Metrics]:
        phi = loss_in_use(self._taught_phi(), state)
        student, statistics = plain_steps(problem, state.student, phi, batches.train, rates)
        return self._after(state, student), plain_metrics(problem, student, batches.val, statistics, rates[-1])

    def _after(self, state: MethodState, student: StudentState) -> MethodState:
        if not self._keeps_buffers:
            student = student._replace(buffers=state.student.buffers)
        return MethodState(student, state.extra)

    def _taught_phi(self) -> Float[Tensor, " m"]:
        """The loss as the teacher has it, without what the warm-up added."""
        phi = self._loss_network.phi.detach() if self._teacher is None else self._teacher.read().phi
        return phi.to(self._device)

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"]:
        """How hard the learned loss pushes each sample's logits, relative to cross-entropy (`Weighing`)."""
        del index
        student = state.student
        with torch.no_grad():
            outputs = self._student(student.theta, student.buffers, batch.inputs, training=False)
            rows = self._task.rows(outputs, batch)
        logits = rows.logits.detach().requires_grad_()
        phi, memory = loss_in_use(self._taught_phi(), state), state.extra.get("memory")
        memory = None if memory is None else memory[batch.indices]
        with torch.enable_grad():
            learned = self._loss_network.losses_at(phi, logits, rows.labels, memory).sum()
            (push,) = torch.autograd.grad(learned, logits)
        label = F.one_hot(rows.labels, logits.shape[1])
        reference = torch.linalg.vector_norm(logits.detach().softmax(dim=1) - label, dim=1)
        ratio = torch.linalg.vector_norm(push, dim=1) / reference.clamp(min=torch.finfo(reference.dtype).eps)
        if self._reweighting is None or "centers" not in state.extra:
            return ratio
        reweigh = self._in_state(state).reweigh
        assert reweigh is not None
        return ratio * reweigh(student.theta, student.buffers, batch).weights

    def _unroll(
        self,
        problem: InnerProblem,
        state: MethodState,
        proposed: Float[Tensor, " m"],
        batches: RoundBatches,
        rates: list[float],
    ) -> Hypergradient:
        student, phi = state.student, loss_in_use(proposed.to(self._device), state)
        return hypergradient(
            problem,
            student,
            phi,
            batches.train,
            batches.val,
            rates=rates,
            engine=self._chosen_engine(problem, student, phi, batches),
            horizon=self._horizon,
        )

    def _chosen_engine(
        self, problem: InnerProblem, student: StudentState, phi: Tensor, batches: RoundBatches
    ) -> EngineName:
        if self._engine == "auto":
            num_steps = min(self._horizon or len(batches.train), len(batches.train))
            choice = agreed_engine(problem, student, phi, batches.train[0], num_steps)
            _LOG.info("engine: %s (%s)", choice.engine, choice.reason)
            self._engine = choice.engine
        return self._engine

    def _inner_loss(
        self,
        theta: Tensor,
        phi: Tensor,
        buffers: Mapping[str, Tensor],
        batch: Batch,
        memory: Float[Tensor, "images c"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "n c"]]:
        outputs = self._student(theta, buffers, batch.inputs, training=True)
        rows = self._task.rows(outputs, batch)
        own_memory = None if memory is None else memory[batch.indices]
        losses = self._loss_network.losses_at(phi, rows.logits, rows.labels, own_memory)
        if self._is_clean is not None:
            plain = F.cross_entropy(rows.logits, rows.labels, reduction="none")
            losses = torch.where(self._is_clean[batch.indices], plain, losses)
        return (rows.weights * losses).sum(), rows.logits

    def _outer_error(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        return self._task.error(self._student(theta, buffers, batch.inputs, training=True), batch)

    def _in_state(self, state: MethodState) -> InnerProblem:
        """The problem with what the method carries from round to round: memory and class centres."""
        problem = replace(self._problem, inner_loss=partial(self._inner_loss, memory=state.extra.get("memory")))
        if self._reweighting is None:
            return problem
        metric, positive, centers = self._reweighting.metric, self._reweighting.positive, state.extra["centers"]

        def reweigh(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Batch:
            embeddings = self._embed(theta, buffers, batch)
            weights = importance_weights(
                embeddings, batch.targets, centers, metric, positive=positive, group=self._group
            )
            return batch._replace(weights=weights)

        return replace(problem, reweigh=reweigh)

    def _with_memory(self, state: MethodState, batches: RoundBatches) -> MethodState:
        """What the student, as it is before the round, says of the round's training images is remembered."""
        if "memory" not in state.extra:
            return state
        student = state.student
        with torch.no_grad():
            answers = [
                self._task.rows(
                    self._student(student.theta, student.buffers, batch.inputs, training=False), batch
                ).logits.softmax(dim=1)
                for batch in batches.train
            ]
        indices = torch.cat([batch.indices for batch in batches.train])
        memory = remembered(state.extra["memory"], indices, torch.cat(answers), self._group)
        return state._replace(extra={**state.extra, "memory": memory})

    def _with_centers(self, state: MethodState, index: int) -> MethodState:
        """Refreshes the class centres at the start of an epoch, every `refresh_every` rounds, and where there are none,
        as after a warm-up."""
        if self._reweighting is None:
            return state
        epoch = self._data.epoch(index)
        is_due = index == 0 or self._data.epoch(index - 1) != epoch or index % self._reweighting.refresh_every == 0
        if not is_due and "centers" in state.extra:
            return state
        student = state.student
        embeddings = (
            (self._embed(student.theta, student.buffers, batch), batch.targets)
            for batch in self._data.validation(epoch)
        )
        centers = class_centers(
            embeddings, self._data.num_classes, previous=state.extra.get("centers"), group=self._group
        )
        return state._replace(extra={**state.extra, "centers": centers})

    @torch.no_grad()
    def _embed(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, "n d"]:
        """Penultimate features in evaluation mode: the same function for samples and for centres."""
        _, embedding = self._student(theta, buffers, batch.inputs, with_embedding=True, training=False)
        return embedding


def initial_student(student: FlatModule, device: torch.device | str) -> StudentState:
    theta = student.initial().to(device)
    buffers = {name: buffer.to(device) for name, buffer in student.initial_buffers().items()}
    return StudentState(theta, torch.zeros_like(theta), buffers)
