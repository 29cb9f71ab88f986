"""Stochastic loss function (Liu & Lai, AAAI 2020): random gates over fixed losses. Our rendering.

Published are the idea (a decision network, a Gumbel-softmax gate for each candidate loss, both networks learned in one
back-propagation, guided by the validation data) and results, not code, candidates or sizes. Figures of this file are
therefore its own, never the authors'. A step's loss is

    L = sum_k m_k l_k / s_k / max(sum_k m_k, 1e-6),   m_k = gumbel_softmax(a_k; tau)[on]

with l_k the mean of candidate k over the minibatch, s_k its running mean (so that no candidate is chosen for being
small), and a = [off, on] of each candidate: the decision network's output, averaged over the minibatch. It reads
softmax, one-hot label, cross-entropy and the share of the training that is over, none of them differentiated. The
Gumbel noise of a step is counted, hence the same on all workers, and the same in the virtual and in the real step.

Mode `validation`: the decision network learns from the validation error after one virtual step (as Meta-Weight-Net
here, with the round's validation minibatch for all K steps). Mode `single`: from the training loss itself, as the
published description suggests; it then favours whatever is small, which is why the losses are scaled.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.unroll import StepStatistics
from l2t_ray.core.adam import AdamUpdate, Learned
from l2t_ray.core.student import RowLoss, Trainee, cross_entropy
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches, Rows, StudentState
from l2t_ray.methods.gce import generalised_cross_entropy
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import HAI_2023, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.parallel.group import GlobalSum
from l2t_ray.students.initialise import seeded

Mode = Literal["validation", "single"]
LARGE_MARGIN = 1.0
HIDDEN = 64
"""Hidden units of the decision network."""
LEARNING_RATE = 1e-3
"""Of Adam on the decision network's weights."""
TEMPERATURES = 1.0, 0.1
"""Of the gates, at the beginning and at the end of the training."""
SCALE_DECAY = 0.9
"""Of the running mean by which each candidate loss is divided."""


class SLFConfig(MethodSettings):
    """Stochastic loss function (Liu & Lai 2020): gates over fixed losses. Our rendering; no code was published."""

    # Its authors published no schedule; L2T-DLN compares with it on its own.
    paper_schedule: ClassVar[PaperSchedule | None] = HAI_2023
    constants: ClassVar[Mapping[str, str]] = {
        "hidden": "HIDDEN",
        "learning_rate": "LEARNING_RATE",
        "temperature_start": "TEMPERATURES",
        "temperature_end": "TEMPERATURES",
        "scale_decay": "SCALE_DECAY",
    }
    goes_by_images: ClassVar[bool] = True

    name: Literal["slf"] = "slf"
    mode: Mode = "validation"
    """`validation`: gates learn from the validation error through one virtual step; `single`: from the training loss,
    in the same pass as the student."""

    def build(self, parts: Parts) -> "SLF":
        return SLF(
            parts.trainee,
            num_classes=parts.num_classes,
            num_rounds=parts.num_rounds,
            mode=self.mode,
            seed=parts.seed,
        )


def label_smoothed(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy against 0.9 of the label and 0.1 of the uniform distribution."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def focal(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`(1 - p_y)^2 (-log p_y)` (Lin et al. 2017, gamma = 2)."""
    losses = cross_entropy(logits, labels)
    return (1 - (-losses).exp()).square() * losses


def brier(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Squared distance of the softmax to the one-hot label."""
    return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).square().sum(dim=1)


def hinge(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`max(0, 1 + max_j z_j - z_y)` over the other classes (Crammer & Singer 2001)."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return (1 + others - logits.gather(1, labels[:, None])[:, 0]).relu()


def large_margin(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy with the label's logit lowered by 1 (an additive margin)."""
    return cross_entropy(logits - LARGE_MARGIN * F.one_hot(labels, logits.shape[1]), labels)


CANDIDATES: tuple[RowLoss, ...] = (
    cross_entropy,
    label_smoothed,
    focal,
    brier,
    hinge,
    generalised_cross_entropy(0.7),
    large_margin,
)


def candidate_losses(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Every candidate's loss of every row."""
    return torch.stack([loss(logits, labels) for loss in CANDIDATES], dim=1)


def gates(decisions: Float[Tensor, "k 2"], noise: Float[Tensor, "k 2"], temperature: float) -> Float[Tensor, " k"]:
    """How far each candidate is switched on: 0 or 1 in the limit of low temperature."""
    return ((decisions + noise) / temperature).softmax(dim=1)[:, 1]


class _Draw(NamedTuple):
    """What is constant in one step: Gumbel noise, temperature, running means of the candidates, progress."""

    noise: Float[Tensor, "k 2"]
    temperature: float
    scales: Float[Tensor, " k"]
    progress: float


class SLF:
    """The method."""

    def __init__(
        self,
        trainee: Trainee,
        *,
        num_classes: int,
        num_rounds: int,
        mode: Mode = "validation",
        hidden: int = HIDDEN,
        learning_rate: float = LEARNING_RATE,
        temperatures: tuple[float, float] = TEMPERATURES,
        scale_decay: float = SCALE_DECAY,
        seed: int = 0,
    ):
        """
        Args:
            num_rounds: of the whole training, over which the temperature falls geometrically.
            mode: what the decision network learns from.
            hidden: its hidden units. Its last layer starts at zero: every gate is open half of the time.
            learning_rate: of Adam on its weights.
            temperatures: of the gates, at the beginning and at the end.
            scale_decay: of the running means, once a step; they start at the losses of an undecided student.
            seed: of its first weights and of the gates.
        """
        self._trainee, self._adam, self._num_rounds = trainee, AdamUpdate(learning_rate), num_rounds
        self._num_classes, self._mode, self._seed = num_classes, mode, seed
        self._temperatures, self._scale_decay = temperatures, scale_decay
        net = seeded(lambda: decision_network(num_classes, hidden), torch_seed(seed, "slf"))
        self._net = FlatModule(net)

    def init(self) -> MethodState:
        device = self._trainee.device
        undecided = torch.zeros(1, self._num_classes, device=device)
        scales = candidate_losses(undecided, torch.zeros(1, dtype=torch.int64, device=device))[0]
        learned = Learned.begin(self._net.initial().to(device))
        return MethodState(self._trainee.initial(), {**learned._asdict(), "scales": scales})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee = self._trainee
        student, net, scales = state.student, Learned.out_of(state.extra), state.extra["scales"]
        rates = trainee.schedule.rates(index, len(batches.train))
        start, end = self._temperatures
        progress = index / self._num_rounds
        temperature = start * (end / start) ** progress
        statistics, norms = [], []
        for step, (batch, rate) in enumerate(zip(batches.train, rates, strict=True)):
            draw = _Draw(self._noise(index, step), temperature, scales, progress)
            if self._mode == "validation":
                loss = partial(self.loss, draw)
                gradient = trainee.validation_gradient(loss, student, net.weights, batch, batches.val, rate)
                net = self._adam.step(net, gradient)
                student, taken, means, _ = self._step(draw, student, net.weights, batch, rate)
            else:
                student, taken, means, gradient = self._step(draw, student, net.weights, batch, rate)
                net = self._adam.step(net, gradient)
            scales = self._scale_decay * scales + (1 - self._scale_decay) * means
            statistics += taken
            norms.append(torch.linalg.vector_norm(gradient))
        metrics = trainee.report(student, batches.val, statistics, rates[-1])
        metrics["hypergradient_norm"] = torch.stack(norms).mean().item()
        return MethodState(student, {**net._asdict(), "scales": scales}), metrics

    def loss(
        self, draw: _Draw, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The gated loss and the logits (an `InnerLoss`, given what is constant in the step)."""
        return self._evaluate(draw, theta, weights, buffers, batch)[:2]

    def _evaluate(
        self, draw: _Draw, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This worker's shares of the gated loss and of the candidates' means, and between them the logits."""
        rows = self._trainee.rows(theta, buffers, batch)
        values = candidate_losses(rows.logits, rows.labels)
        means = (rows.weights[:, None] * values).sum(dim=0)
        open_ = gates(self._decisions(draw.progress, weights, rows), draw.noise, draw.temperature)
        gated = (open_ * means / draw.scales).sum() / open_.sum().clamp(min=1e-6)
        return gated if rows.rest is None else gated + rows.rest, rows.logits, means.detach()

    def _decisions(self, progress: float, weights: Tensor, rows: Rows) -> Float[Tensor, "k 2"]:
        """The decision network's output, averaged over the global minibatch."""
        logits = rows.logits.detach()
        losses = cross_entropy(logits, rows.labels)[:, None]
        one_hot = F.one_hot(rows.labels, self._num_classes).to(logits)
        seen = torch.cat((logits.softmax(dim=1), one_hot, losses, torch.full_like(losses, progress)), dim=1)
        shares = (rows.weights[:, None] * self._net(weights, {}, seen, training=True)).sum(dim=0)
        return GlobalSum.apply(shares, self._trainee.group).view(len(CANDIDATES), 2)

    def _step(
        self, draw: _Draw, student: StudentState, weights: Tensor, batch: Batch, rate: float
    ) -> tuple[StudentState, list[StepStatistics], Float[Tensor, " k"], Float[Tensor, " m"]]:
        """The real step; with it the candidates' means, and the training loss's gradient in the decision network."""
        seen: list[Tensor] = []

        def step_gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            theta, leaf = theta.detach().requires_grad_(), weights.detach().requires_grad_()
            loss, logits, means = self._evaluate(draw, theta, leaf, buffers, batch)
            gradient, along_weights, logit_gradient = torch.autograd.grad(loss, (theta, leaf, logits))
            seen.extend((means, along_weights))
            return gradient, loss.detach(), logit_gradient

        student, taken = self._trainee.step(student, batch, rate, step_gradient)
        means, along_weights = (self._trainee.group.sum(share) for share in seen)
        return student, taken, means, along_weights

    def _noise(self, index: int, step: int) -> Float[Tensor, "k 2"]:
        generator = torch.Generator().manual_seed(torch_seed(self._seed, "slf-gates", index, step))
        exponential = torch.empty(len(CANDIDATES), 2).exponential_(generator=generator)
        return -exponential.log().to(self._trainee.device)


def decision_network(num_classes: int, hidden: int) -> nn.Module:
    """From a sample to two numbers a candidate, for off and on."""
    last = nn.Linear(hidden, 2 * len(CANDIDATES))
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(2 * num_classes + 2, hidden), nn.ReLU(), last)
