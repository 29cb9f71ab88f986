"""Learning to reweight with deep interactions (Fan et al., AAAI 2021), which the paper cites as L2R.

A teacher network weighs each training sample by what the student makes of it; it learns from the validation error,
differentiated through the last steps of the student's momentum SGD. The authors undo those steps by arithmetic; here
`bilevel/hypergradient.py` keeps them, which is exact, and its recursion has the co-state of the momentum.

Not published, hence chosen here: the teacher's size and optimiser, how many steps it looks back, the exact features.
It reads the student's pooled features, an embedding of the label, the sample's cross-entropy, its margin
`p_y - max_j p_j` and the share of the training that is over; weights are sigmoids, divided by their mean over the
global minibatch. The last layer starts at zero, so that training begins as plain cross-entropy.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.bilevel.engines import EngineName
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.core.adam import AdamUpdate, Learned
from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches
from l2t_ray.methods.parts import Parts, check_gives_embedding
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.parallel.group import GlobalSum
from l2t_ray.settings.record import Count
from l2t_ray.students.initialise import seeded

HIDDEN = 128
"""Hidden units of the teacher."""
LABEL_SIZE = 16
"""Length of the label embedding."""
LEARNING_RATE = 1e-3
"""Of Adam on the teacher's weights."""


class L2RConfig(MethodSettings):
    """Learning to reweight with deep interactions (Fan et al. 2021): a teacher that reads the student's features."""

    constants: ClassVar[Mapping[str, str]] = {
        "hidden": "HIDDEN",
        "label_size": "LABEL_SIZE",
        "learning_rate": "LEARNING_RATE",
    }
    goes_by_images: ClassVar[bool] = True

    name: Literal["l2r"] = "l2r"
    horizon: Count | None = None
    """B, student steps the derivative goes back through (not published); null: all of a round's."""
    engine: Literal["store", "recompute"] = "store"
    """As the method's; the mean weight of a global minibatch cannot be differentiated forward."""

    def build(self, parts: Parts) -> "L2R":
        check_gives_embedding(parts, "l2r", "method=cross_entropy")
        return L2R(
            parts.trainee,
            num_features=parts.num_features(),
            num_classes=parts.num_classes,
            num_rounds=parts.num_rounds,
            horizon=self.horizon,
            engine=self.engine,
            seed=torch_seed(parts.seed, "l2r"),
        )


class Weigher(nn.Module):
    """The teacher's network, from what it reads of a sample to a weight in (0, 1)."""

    def __init__(self, num_features: int, num_classes: int, hidden: int, label_size: int):
        super().__init__()
        self.label = nn.Parameter(torch.randn(num_classes, label_size))
        self.hidden = nn.Linear(num_features + label_size + 3, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        losses: Float[Tensor, " n"],
        margins: Float[Tensor, " n"],
        progress: float,
    ) -> Float[Tensor, " n"]:
        numbers = torch.stack((losses, margins, torch.full_like(losses, progress)), dim=1)
        x = torch.cat((features, self.label[labels], numbers), dim=1)
        return self.out(self.hidden(x).relu())[:, 0].sigmoid()


class L2R:
    """The method: K student steps under the teacher's weights, then one step of the teacher, every round."""

    def __init__(
        self,
        trainee: Trainee,
        *,
        num_features: int,
        num_classes: int,
        num_rounds: int,
        hidden: int = HIDDEN,
        label_size: int = LABEL_SIZE,
        learning_rate: float = LEARNING_RATE,
        horizon: int | None = None,
        engine: Literal["store", "recompute"] = "store",
        seed: int = 0,
    ):
        """
        Args:
            num_features: length of the features that the student gives with its logits.
            num_rounds: of the whole training, for the share of it that is over (taken at the round's start).
            hidden, label_size: of the teacher's network.
            learning_rate: of Adam on the teacher's weights.
            horizon: B, student steps of a round that the derivative goes back through; None: all.
            engine: how second-order products are computed (`ENGINES`). Not forward over reverse: a sum over
                workers has no forward derivative.
            seed: of the teacher's first weights.
        """
        self._trainee, self._adam, self._num_rounds = trainee, AdamUpdate(learning_rate), num_rounds
        self._horizon = horizon
        self._engine: EngineName = engine
        self._weigher = FlatModule(seeded(lambda: Weigher(num_features, num_classes, hidden, label_size), seed))

    def init(self) -> MethodState:
        weights = self._weigher.initial().to(self._trainee.device)
        return MethodState(self._trainee.initial(), Learned.begin(weights)._asdict())

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee, teacher = self._trainee, Learned.out_of(state.extra)
        rates = trainee.schedule.rates(index, len(batches.train))
        result = hypergradient(
            trainee.problem(partial(self.loss, index / self._num_rounds)),
            state.student,
            teacher.weights,
            batches.train,
            batches.val,
            rates=rates,
            engine=self._engine,
            horizon=self._horizon,
        )
        gradient = trainee.group.sum(result.gradient)
        metrics = trainee.report(result.student, batches.val, result.statistics, rates[-1])
        metrics["hypergradient_norm"] = torch.linalg.vector_norm(gradient).item()
        return MethodState(result.student, self._adam.step(teacher, gradient)._asdict()), metrics

    @torch.no_grad()
    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"]:
        rows, features = self._trainee.seen(state.student, batch)
        seen = features, rows.labels, cross_entropy(rows.logits, rows.labels), margins(rows.logits, rows.labels)
        weights = Learned.out_of(state.extra).weights
        return self._weigher(weights, {}, *seen, index / self._num_rounds, training=False)

    def loss(
        self, progress: float, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The weighted cross-entropy and the logits (an `InnerLoss`, given the share of the training that is over)."""
        rows, features = self._trainee.rows_and_features(theta, buffers, batch)
        losses = cross_entropy(rows.logits, rows.labels)
        seen = (features.detach(), rows.labels, losses.detach(), margins(rows.logits.detach(), rows.labels))
        values = self._weigher(weights, {}, *seen, progress, training=True)
        mean = GlobalSum.apply((rows.weights * values).sum(), self._trainee.group)
        return rows._replace(weights=rows.weights * values / mean).total(losses), rows.logits


def margins(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Probability of the label less that of the likeliest other class, in [-1, 1]."""
    p = logits.softmax(dim=1)
    others = p.scatter(1, labels[:, None], -1.0).amax(dim=1)
    return p.gather(1, labels[:, None])[:, 0] - others
