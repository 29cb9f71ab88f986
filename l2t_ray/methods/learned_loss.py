"""Training under a loss network, taught or not: warm-up, estimates of the label noise, phases."""

import logging
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.brought import checked_family
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.noise_estimate import estimate_noise
from l2t_ray.core.objective import LearnedObjective, shifted
from l2t_ray.core.reweight import ClassCenters
from l2t_ray.interfaces import Data, Method, MethodState, StudentState
from l2t_ray.methods.known_losses import DEFAULT_LOSS, LossConfig
from l2t_ray.methods.parts import LossFacts, Parts, check_rows_are_examples
from l2t_ray.methods.phases import Phase, rounds_of
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.own_code import own_code
from l2t_ray.settings.record import Count, Fraction

_LOG = logging.getLogger(__name__)


@runtime_checkable
class ShiftedByNoise(Protocol):
    """A loss with a channel of label noise, which can be set to an estimate of it."""

    def shift_to(self, channel: Float[Tensor, "c c"], phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What to add to phi so that its channel becomes this one."""
        ...


class LearnedLossSettings(MethodSettings):
    """What a method with a learned loss has, whether that is taught or not."""

    renamed: ClassVar[Mapping[str, str]] = {"loss_network": "loss"}

    loss: LossConfig = DEFAULT_LOSS()
    """The family of losses that is learned: `pairs`, the paper's loss network; `terms`, a combination of the task's own
    loss terms; `soft_metric`, cross-entropy and a soft Jaccard index with curves inside; `adjusted`, cross-entropy with
    few numbers that change it; or the import path of one of your own (docs/extending.md)."""
    warm_share: Fraction = 0
    """Share of the rounds, the first ones, that train with plain cross-entropy (`loss: terms`: with the task's own
    loss); teaching begins after them. A channel is then estimated from the student's embeddings
    (`core/noise_estimate.py`)."""
    channel_estimates: Count = 1
    """How often a channel is estimated: after the warm rounds, and then evenly spaced until half of all are done, with
    a better student each time. Each estimate takes the place of the channel as it was learned until then."""

    def first_loss(self, facts: LossFacts, *, begun: bool = True) -> LossFamily:
        """The loss at its beginning (see `LossSettings.family`).

        Raises:
            UserError: if somebody's own class makes none.
        """
        if facts.given is not None:
            return facts.given
        what = f"loss {self.loss.name!r}"
        with own_code(what, self.loss):
            family = self.loss.family(facts, begun=begun)
        return checked_family(family, what)

    def learned_loss(self, phi: Float[Tensor, " m"], facts: LossFacts) -> LearnedLoss | None:
        return LearnedLoss(self.first_loss(facts, begun=False), phi)

    def learner(self, objective: LearnedObjective, parts: Parts) -> Method:
        """The method of every round after the warm ones."""
        raise NotImplementedError

    def centers(self, parts: Parts) -> ClassCenters | None:
        """Data reweighting; None: every sample counts alike."""
        del parts
        return None

    def data_with_clean(self, parts: Parts) -> Data:
        """The method's own batches where validation images are trained on under it."""
        return parts.source.mixed()

    def plain(self, parts: Parts) -> Method:
        return self.loss.warm_up(parts.trainee)

    def phases(self, parts: Parts) -> list[Phase]:
        """The learned loss, after its warm-up, and begun anew with each estimate of the label noise."""
        objective = self._objective(parts)
        learner = self.learner(objective, parts)
        ending = [] if self.clean_images == "trusted" else self.ending(parts)
        return [*self._rounds(learner, objective, parts), *ending]

    def warm_rounds(self, num_rounds: int) -> int:
        return rounds_of(self.warm_share, num_rounds) if self.warm_share else 0

    def estimate_rounds(self, num_rounds: int) -> list[int]:
        """The rounds that begin with an estimate of the noise: after the warm ones, and then evenly spaced until half
        of all are done. Shorter runs have fewer."""
        first = self.warm_rounds(num_rounds)
        last = max(first, num_rounds // 2)
        gap = (last - first) / max(1, self.channel_estimates - 1)
        return sorted({round(first + i * gap) for i in range(self.channel_estimates)})

    def _rounds(self, learner: Method, objective: LearnedObjective, parts: Parts) -> list[Phase]:
        plain, warm = parts.source.plain(), self.warm_rounds(parts.num_rounds)
        own = self.data_with_clean(parts) if self.clean_images in ("mixed", "trusted") else plain
        if not warm:
            return [Phase(0, learner, own)]
        warm_data = own if self.clean_images == "mixed" else plain
        memory = self._memory(parts) if objective.loss.reads_memory else None
        warm_up = Phase(0, self.loss.warm_up(parts.trainee, memory), warm_data)
        loss = objective.loss
        if not (self.loss.has_channel and isinstance(loss, ShiftedByNoise)):
            return [warm_up, Phase(warm, learner, own)]

        def with_estimate(state: MethodState, index: int) -> MethodState:
            phi = objective.initial_phi() if parts.teacher is None else parts.teacher.read().phi
            channel = estimated_channel(state.student, parts, plain.epoch(index))
            return shifted(state, loss.shift_to(channel, phi.to(parts.device)))

        return [
            warm_up,
            *(Phase(first, learner, own, with_estimate) for first in self.estimate_rounds(parts.num_rounds)),
        ]

    def _objective(self, parts: Parts) -> LearnedObjective:
        """
        Raises:
            UserError: if a part of the loss goes by images, and a row of the task is no image.
        """
        loss = self.first_loss(parts.loss_facts, begun=not self.has_teacher)
        is_estimated = self.loss.has_channel and self.warm_share > 0
        channel, without = self.loss.channel_setting
        for key, needs_images, instead in (
            ("memory", loss.reads_memory, "memory=null"),
            (channel, is_estimated, without),
        ):
            if needs_images:
                check_rows_are_examples(parts, f"method.loss.{key}", f"method.loss.{instead}")
        if is_estimated:
            parts.num_features()  # an estimate reads them, and it is made late
        centers = self.centers(parts)
        return LearnedObjective(
            parts.trainee,
            loss,
            has_offset=is_estimated,
            memory=self._memory(parts),
            centers=centers,
            is_clean=parts.is_clean if self.clean_images == "trusted" else None,
        )

    def _memory(self, parts: Parts) -> Memory:
        return Memory(parts.trainee, parts.num_images, parts.num_classes)


@torch.no_grad()
def estimated_channel(student: StudentState, parts: Parts, epoch: int) -> Float[Tensor, "c c"]:
    """The label noise that this student shows, estimated by one worker for all."""
    trainee, group, num_classes = parts.trainee, parts.group, parts.num_classes
    if group.rank != 0:
        return group.sum(torch.zeros(num_classes, num_classes, device=parts.device))
    labels, split = parts.labels, parts.source.split(epoch)

    def embeddings(rows: Int[np.ndarray, " n"]) -> Tensor:
        return torch.cat([trainee.features(student, batch) for batch in parts.source.images(rows)])

    def on_device(labels: Int[np.ndarray, " n"]) -> Tensor:
        return torch.tensor(labels, device=parts.device)

    estimate = estimate_noise(
        embeddings(split.validation),
        on_device(labels.validation[split.validation]),
        embeddings(split.train),
        on_device(labels.observed[split.train]),
        num_classes=num_classes,
    )
    _LOG.info("label noise: %s", estimate)
    parts.on_estimate(estimate)
    return group.sum(estimate.channel.to(student.theta))
