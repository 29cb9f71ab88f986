"""Meta-Weight-Net (Shu et al., NeurIPS 2019): a small network V from a sample's loss to its weight.

Each student step, as in the authors' later script:

1. virtual   theta^(Theta) = theta - alpha * d/dtheta mean_i V(l_i; Theta) l_i, the l_i inside V held constant
2. learn     Theta <- Adam(d e(theta^(Theta)) / d Theta), exactly, through the one step
3. real      theta <- SGD on mean_i V(l_i; Theta) l_i with the new Theta, whose weights are constants

The authors draw a meta minibatch a step; here the round's validation minibatch serves all K steps of the round, so
that every method sees the same images as often.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.adam import AdamUpdate, Learned
from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import NonNegative, Positive, Width
from l2t_ray.students.initialise import seeded


class MWNetConfig(MethodSettings):
    """Meta-Weight-Net (Shu et al. 2019): a network from a sample's loss to its weight."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019
    goes_by_images: ClassVar[bool] = True

    name: Literal["mw_net"] = "mw_net"
    hidden: Width = 100
    """Hidden units (paper: 100)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the weight network (authors' later script: 1e-3)."""
    weight_decay: NonNegative = 1e-4
    """Of the same Adam (authors' later script: 1e-4)."""

    def build(self, parts: Parts) -> "MWNet":
        return MWNet(
            parts.trainee,
            hidden=self.hidden,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=torch_seed(parts.seed, "mw_net"),
        )


class MWNet:
    """The method. Batch-norm statistics move with the real steps alone; the virtual student uses the minibatch's."""

    def __init__(
        self,
        trainee: Trainee,
        *,
        hidden: int = 100,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ):
        """
        Args:
            hidden: units of V's one hidden layer.
            learning_rate, weight_decay: of Adam on V's weights.
            seed: of V's first weights (PyTorch's default for linear layers, as the authors').
        """
        self._trainee, self._adam = trainee, AdamUpdate(learning_rate, weight_decay)
        self._net = FlatModule(seeded(lambda: weight_network(hidden), seed))

    def init(self) -> MethodState:
        weights = self._net.initial().to(self._trainee.device)
        return MethodState(self._trainee.initial(), Learned.begin(weights)._asdict())

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee = self._trainee
        student, net, val = state.student, Learned.out_of(state.extra), batches.val
        rates = trainee.schedule.rates(index, len(batches.train))
        statistics, norms = [], []
        for batch, rate in zip(batches.train, rates, strict=True):
            gradient = trainee.validation_gradient(self.loss, student, net.weights, batch, val, rate)
            net = self._adam.step(net, gradient)
            student, step = trainee.train(self.loss, student, net.weights, [batch], [rate])
            statistics += step
            norms.append(torch.linalg.vector_norm(gradient))
        metrics = trainee.report(student, val, statistics, rates[-1])
        metrics["hypergradient_norm"] = torch.stack(norms).mean().item()
        return MethodState(student, net._asdict()), metrics

    @torch.no_grad()
    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"]:
        rows, _ = self._trainee.seen(state.student, batch)
        losses = cross_entropy(rows.logits, rows.labels)
        return self._net(Learned.out_of(state.extra).weights, {}, losses[:, None], training=False)[:, 0]

    def loss(
        self, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """`sum_i w_i V(l_i) l_i` with w the shares of the global batch, and the logits (an `InnerLoss`)."""
        rows = self._trainee.rows(theta, buffers, batch)
        losses = cross_entropy(rows.logits, rows.labels)
        values = self._net(weights, {}, losses.detach()[:, None], training=True)[:, 0]
        return rows._replace(weights=rows.weights * values).total(losses), rows.logits


def weight_network(hidden: int) -> nn.Module:
    """V: one hidden layer of rectified units, and a sigmoid: weights lie in (0, 1)."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())
