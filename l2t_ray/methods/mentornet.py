"""MentorNet (Jiang et al., ICML 2018): weights that follow a curriculum, predefined (PD) or learned from data (DD).

Each student step, as in google/mentornet:

    q     percentile p of the minibatch's losses, the nearest one
    m     <- d m + (1 - d) q                       the moving percentile, from 0
    v_i   = mentor(l_i, l_i - m), 1 in the burn-in
    v_i   = 0 for a random share r of the minibatch                (sample dropout)
    loss  = mean_i v_i l_i, and weight decay multiplied by mean_i v_i

PD: the closed form which the authors fit a network to, by percentage of the training: up to the burn-in v = 1; below
90 % v = 1 where l <= m (self-paced); from 90 % on v = clip(1 - (l - m) / gamma, 0, 1) (linear).

DD: the authors' network (a one-unit bidirectional LSTM's single step on (l, l - m), a label embedding of 2 and an epoch
embedding of 5, both at a constant entry; 9-20-1; sigmoid). The authors fit it to logs of another student on data whose
labels are known both clean and noisy. Here it is fitted once, at the end of the burn-in, to the validation images: the
student's losses on their *observed* labels (in evaluation mode), against whether the observed label is right, with
the percentile of those losses as m.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.unroll import StepStatistics
from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.data.counted import numpy_generator, torch_seed
from l2t_ray.interfaces import Batch, Data, MethodState, Metrics, RoundBatches, StudentState
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import JIANG_2018, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.parallel.gather import gathered
from l2t_ray.settings.record import Share
from l2t_ray.students.initialise import seeded

Curriculum = Literal["predefined", "data_driven"]
DECAY = 0.5
"""d, of the moving percentile (authors' flag)."""
BURN_IN = 18
"""Percentage of the training during which all weights are 1 (authors' flag)."""
LINEAR_FROM = 90
"""Percentage of the training at which PD turns from self-paced to linear weights."""
GAMMA = 1.0
"""Width of PD's linear weights (authors' flag)."""
DROPOUT = 0.5, 0.05
"""r, the share of each minibatch that is dropped at random, at first and then (authors' example)."""
DROPOUT_CHANGES_AT = 17
"""Percentage of the training at which it does."""
FIT_STEPS = 3_000
"""Adam steps that fit the DD network (authors: 30,000, on far more than 1,000 samples)."""


class MentorNetConfig(MethodSettings):
    """MentorNet (Jiang et al. 2018): a curriculum over samples, predefined or learned from data."""

    paper_schedule: ClassVar[PaperSchedule | None] = JIANG_2018
    constants: ClassVar[Mapping[str, str]] = {
        "decay": "DECAY",
        "burn_in": "BURN_IN",
        "gamma": "GAMMA",
        "dropout_first": "DROPOUT",
        "dropout_rest": "DROPOUT",
        "fit_steps": "FIT_STEPS",
    }
    goes_by_images: ClassVar[bool] = True

    name: Literal["mentornet"] = "mentornet"
    curriculum: Curriculum = "predefined"
    """`predefined`: the closed form of the authors' PD curriculum; `data_driven`: a network fitted to which of the
    validation images' observed labels are right (DD)."""
    percentile: Share = 0.75
    """Of a minibatch's losses, below which samples count as easy (authors: 0.75 for PD)."""

    @property
    def needs_clean_validation_labels(self) -> bool:
        return self.curriculum == "data_driven"

    def build(self, parts: Parts) -> "MentorNet":
        return MentorNet(
            parts.trainee,
            parts.source.plain(),
            torch.tensor(parts.labels.observed),
            num_rounds=parts.num_rounds,
            curriculum=self.curriculum,
            percentile=self.percentile,
            fit_steps=FIT_STEPS,
            seed=parts.seed,
        )


def predefined_weights(
    excess: Float[Tensor, " n"], percentage: int, *, burn_in: int = BURN_IN, gamma: float = GAMMA
) -> Float[Tensor, " n"]:
    """The PD curriculum's v for losses that exceed the moving percentile by `excess` (module docstring)."""
    if percentage <= burn_in:
        return torch.ones_like(excess)
    if percentage < LINEAR_FROM:
        return (excess <= 0).to(excess)
    return (1 - excess / gamma).clamp(0, 1)


class Mentor(nn.Module):
    """The DD network. Label and epoch are constant here, their embeddings so many further biases."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Linear(2, 6)  # input, candidate and output gate of a cell a direction; no state to forget
        self.label = nn.Parameter(torch.randn(2))
        self.epoch: Tensor
        self.register_buffer("epoch", torch.randn(5))  # not trained by the authors either
        self.hidden = nn.Linear(9, 20)
        self.out = nn.Linear(20, 1)

    def forward(self, losses: Float[Tensor, " n"], excess: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Logits of v."""
        take, candidate, give = self.cells(torch.stack((losses, excess), dim=1)).chunk(3, dim=1)
        states = give.sigmoid() * (take.sigmoid() * candidate.tanh()).tanh()
        constants = torch.cat((self.label, self.epoch)).expand(len(losses), 7)
        return self.out(self.hidden(torch.cat((states, constants), dim=1)).tanh())[:, 0]


def fit_mentor(
    mentor: Mentor,
    losses: Float[Tensor, " n"],
    excess: Float[Tensor, " n"],
    is_right: Bool[Tensor, " n"],
    *,
    num_steps: int,
    seed: int,
) -> None:
    """Fits the mentor to which labels are right, as the authors do: Adam 0.1, decayed by 0.9 a 1,000 steps,
    minibatches of 32, gradients clipped to norm 5, binary cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(mentor.parameters(), lr=0.1)
    decay = torch.optim.lr_scheduler.StepLR(adam, 1000, 0.9)
    for _ in range(num_steps):
        rows = torch.randint(len(losses), (32,), generator=generator)
        adam.zero_grad()
        error = F.binary_cross_entropy_with_logits(mentor(losses[rows], excess[rows]), is_right[rows].float())
        error.backward()
        nn.utils.clip_grad_norm_(mentor.parameters(), 5.0)
        adam.step()
        decay.step()


class MentorNet:
    """The method. Percentiles and dropout are of the global minibatch, whatever the number of workers."""

    def __init__(
        self,
        trainee: Trainee,
        data: Data,
        observed_labels: Int[Tensor, " images"],
        *,
        num_rounds: int,
        curriculum: Curriculum = "predefined",
        percentile: float = 0.75,
        decay: float = DECAY,
        burn_in: int = BURN_IN,
        gamma: float = GAMMA,
        dropout: tuple[float, float] = DROPOUT,
        fit_steps: int = FIT_STEPS,
        seed: int = 0,
    ):
        """
        Args:
            data: for the validation part that DD is fitted to.
            observed_labels: by image of the training set (`Batch.indices`), its label as annotated.
            num_rounds: of the whole training, of which the curriculum is a function.
            percentile, decay: p and d of the module docstring.
            burn_in: percentage of the training up to which v is 1.
            gamma: width of PD's linear weights.
            dropout: r in the first 17 % of the training, and afterwards.
            fit_steps: Adam steps of DD's fit.
            seed: of dropout, the mentor's first weights and its minibatches.
        """
        self._trainee, self._data, self._observed = trainee, data, observed_labels.to(trainee.device)
        self._num_rounds, self._curriculum = num_rounds, curriculum
        self._percentile, self._decay = percentile, decay
        self._burn_in, self._gamma, self._dropout = burn_in, gamma, dropout
        self._fit_steps, self._seed = fit_steps, seed
        self._mentor = FlatModule(seeded(Mentor, torch_seed(seed, "mentor")))
        self._mentor_buffers = {
            name: buffer.to(trainee.device) for name, buffer in self._mentor.initial_buffers().items()
        }

    def init(self) -> MethodState:
        device = self._trainee.device
        extra = {"moving_percentile": torch.zeros((), device=device), "mentor": self._mentor.initial().to(device)}
        return MethodState(self._trainee.initial(), extra)

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee, student = self._trainee, state.student
        moving, mentor = state.extra["moving_percentile"], state.extra["mentor"]
        if self._curriculum == "data_driven" and self._ends_burn_in(index):
            mentor = self._fitted(student, self._data.epoch(index))
        rates = trainee.schedule.rates(index, len(batches.train))
        statistics: list[StepStatistics] = []
        for step, (batch, rate) in enumerate(zip(batches.train, rates, strict=True)):
            student, taken, moving = self._step(student, moving, mentor, batch, rate, index, step)
            statistics += taken
        metrics = trainee.report(student, batches.val, statistics, rates[-1])
        return MethodState(student, {"moving_percentile": moving, "mentor": mentor}), metrics

    @torch.no_grad()
    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"]:
        """The curriculum's values, before the sample dropout."""
        rows, _ = self._trainee.seen(state.student, batch)
        losses = cross_entropy(rows.logits, rows.labels)
        excess = losses - state.extra["moving_percentile"]
        return self._values(losses, excess, state.extra["mentor"], index)

    def _step(
        self, student: StudentState, moving: Tensor, mentor: Tensor, batch: Batch, rate: float, index: int, step: int
    ) -> tuple[StudentState, list[StepStatistics], Float[Tensor, ""]]:
        weight_decay = self._trainee.schedule.optimizer.loss_decay

        def step_gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal moving
            theta = theta.detach().requires_grad_()
            rows = self._trainee.rows(theta, buffers, batch)
            losses = cross_entropy(rows.logits, rows.labels)
            whole, start = gathered(losses.detach(), self._trainee.group)
            quantile = torch.quantile(whole, self._percentile, interpolation="nearest")
            moving = self._decay * moving + (1 - self._decay) * quantile
            values = self._values(losses.detach(), losses.detach() - moving, mentor, index)
            kept = self._kept(len(whole), index, step)[start : start + len(losses)].to(values.device)
            weights = rows.weights * values * kept
            loss = rows._replace(weights=weights).total(losses)
            gradient, logit_gradient = torch.autograd.grad(loss, (theta, rows.logits))
            # Weight decay is multiplied by the mean weight here, so it is part of the gradient.
            gradient = gradient + weight_decay * weights.sum() * theta.detach()
            return gradient, loss.detach(), logit_gradient

        student, taken = self._trainee.step(student, batch, rate, step_gradient, has_decay=True)
        return student, taken, moving

    def _values(self, losses: Tensor, excess: Tensor, mentor: Tensor, index: int) -> Float[Tensor, " n"]:
        percentage = self._percentage(index)
        if self._curriculum == "predefined" or percentage <= self._burn_in:
            return predefined_weights(excess, percentage, burn_in=self._burn_in, gamma=self._gamma)
        seen = losses.to(mentor), excess.to(mentor)
        return self._mentor(mentor, self._mentor_buffers, *seen, training=True).sigmoid().to(losses)

    def _kept(self, size: int, index: int, step: int) -> Bool[Tensor, " whole"]:
        """Which samples of the global minibatch survive the sample dropout."""
        rate = self._dropout[0] if self._percentage(index) < DROPOUT_CHANGES_AT else self._dropout[1]
        order = numpy_generator(self._seed, "mentornet-dropout", index, step).permutation(size)
        kept = torch.zeros(size, dtype=torch.bool)
        kept[torch.from_numpy(order[: math.floor(size * (1 - rate))])] = True
        return kept

    def _percentage(self, index: int) -> int:
        """Of the training that is over at the beginning of a round."""
        return 100 * index // self._num_rounds

    def _ends_burn_in(self, index: int) -> bool:
        return self._percentage(index) > self._burn_in and (index == 0 or self._percentage(index - 1) <= self._burn_in)

    @torch.no_grad()
    def _log(self, student: StudentState, epoch: int) -> tuple[Float[Tensor, " v"], Bool[Tensor, " v"]]:
        """Losses of the validation images under their observed labels, and whether those labels are right."""
        losses, is_right = [], []
        for batch in self._data.validation(epoch):
            logits = self._trainee.outputs(student.theta, student.buffers, batch, training=False)
            observed = self._observed[batch.indices]
            losses.append(cross_entropy(logits, observed))
            is_right.append((observed == batch.targets).to(logits))
        group = self._trainee.group
        return gathered(torch.cat(losses), group)[0], gathered(torch.cat(is_right), group)[0] > 0.5

    def _fitted(self, student: StudentState, epoch: int) -> Float[Tensor, " m"]:
        losses, is_right = (values.cpu() for values in self._log(student, epoch))
        excess = losses - torch.quantile(losses, self._percentile, interpolation="nearest")
        mentor = deepcopy(self._mentor.module)
        assert isinstance(mentor, Mentor)
        seed = torch_seed(self._seed, "mentor-fit")
        fit_mentor(mentor, losses.float(), excess.float(), is_right, num_steps=self._fit_steps, seed=seed)
        return FlatModule(mentor).initial().to(self._trainee.device)
