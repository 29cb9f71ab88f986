"""L2T-DLN (NeurIPS 2023): a learned loss, rewritten every round by a teacher. Its round is `core/meta_step.py`."""

import logging
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from l2t_ray.bilevel.engines import EngineName
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.reweight import ClassCenters, Reweighting
from l2t_ray.core.signal_to_noise import SignalToNoise
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Data, UserError
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.parts import LossFacts, Parts, check_gives_embedding, check_rows_are_examples
from l2t_ray.methods.schedules import HAI_2023, PaperSchedule
from l2t_ray.settings.record import Count, Positive, Record, Whole, Width, named

DEFAULT_TEACHER = "lstm"
MOST_FOLDS = 10
"""Of the validation images, where their number is not set: more bring nothing (docs/log.md)."""

_LOG = logging.getLogger(__name__)


class AdamConfig(Record):
    """A teacher that moves the loss network's weights by Adam."""

    name: Literal["adam"] = "adam"
    step_size: Positive = 1e-3
    """Adam's learning rate on the loss network's weights."""
    clip: Positive | None = 1.0
    """Largest norm of a hypergradient: their norms have heavy tails. null: no limit."""

    def rule(self, num_weights: int, *, seed: int = 0) -> AdamRule:
        del seed  # nothing is drawn
        return AdamRule(num_weights, step_size=self.step_size, clip=self.clip)


class LstmConfig(Record):
    """A teacher that is an LSTM, coordinate by coordinate, and learns how its moves turn out."""

    name: Literal["lstm"] = "lstm"
    cells: Annotated[tuple[Width, ...], Field(min_length=1, max_length=100)] = (20, 20)
    """Hidden units of each cell (paper: 64, 64, 64, 1)."""
    step_size: Positive = 3e-4
    """beta, how far an output of 1 moves a weight (released code: 1e-3)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the LSTM's weights (paper: 1e-3)."""
    horizon: Count = 10
    """Rounds the LSTM is differentiated through (released code: 1)."""
    clip: Positive | None = 1.0
    """Largest norm of a hypergradient that is learned from: their norms have heavy tails (released code: null)."""
    base: AdamConfig | None = AdamConfig()
    """What the LSTM's steps are added to; null: nothing (paper and released code)."""
    # For the released code alone (docs/released.md)
    head: Literal["hidden", "linear"] = "linear"
    """`hidden`: the last hidden state is the step (released code); `linear`: a linear map on it, started at zero."""

    @model_validator(mode="after")
    def _hidden_head_has_one_unit(self) -> "LstmConfig":
        if self.head == "hidden" and self.cells[-1] != 1:
            raise ValueError(
                f"teacher.head 'hidden' needs a last cell of 1 unit, got teacher.cells {list(self.cells)}; "
                "append 1 to teacher.cells or set teacher.head=linear"
            )
        return self

    def rule(self, num_weights: int, *, seed: int) -> LstmRule:
        return LstmRule(
            LSTMTeacher(self.cells, head=self.head, seed=torch_seed(seed, "teacher")),
            num_weights,
            step_size=self.step_size,
            learning_rate=self.learning_rate,
            horizon=self.horizon,
            clip=self.clip,
            base=self.base and self.base.rule(num_weights),
        )


class ReweightConfig(Record):
    """Data reweighting: samples count by how near they are to the centre of their class among the clean images."""

    metric: Literal["cosine", "dot", "minkowski", "snr"] = "snr"
    """Of similarity between a sample's features and its class centre."""
    refresh_every: Count = 25
    """Rounds after which the centres are computed anew."""
    positive: Literal["clamp", "softmax", "shift", "softplus", "released"] = "clamp"
    """How similarities become weights; `released`: as in the released code (docs/released.md, D4)."""

    def centers(self, parts: Parts) -> ClassCenters:
        """
        Raises:
            UserError: if the first centres would lack a class: random divisions are not balanced; or a row of the task
                is no image, or the student gives no features.
        """
        check_rows_are_examples(parts, "method.reweight", "method.reweight=null")
        check_gives_embedding(parts, "method.reweight", "method.reweight=null")
        labels = parts.labels
        present = labels.validation[parts.source.split(0).validation]
        absent = np.setdiff1d(np.arange(parts.num_classes), present)
        if len(absent):
            raise UserError(
                f"method.reweight needs each class among the validation images, and class {absent[0]} "
                f"({labels.class_names[absent[0]]}) is not; enlarge data.num_validation or set data.split=fixed."
            )
        return ClassCenters(
            Reweighting(self.metric, self.positive, self.refresh_every), parts.trainee, parts.source.plain()
        )


class L2TDLNConfig(LearnedLossSettings):
    """A learned loss, rewritten every round by a teacher (NeurIPS 2023)."""

    paper_schedule: ClassVar[PaperSchedule | None] = HAI_2023
    has_teacher: ClassVar[bool] = True

    name: Literal["l2t_dln"] = "l2t_dln"
    engine: EngineName | Literal["auto"] = "store"
    """How second-order products are computed. `auto`: `store` if it fits the memory, else `recompute`; engines differ
    in rounding, so name one where a resumed run must repeat bit for bit. Exact, all but `one_step` (derivative of the
    last step alone) and `finite_difference`, which are there to be compared with."""
    horizon: Count | None = None
    """Student steps the hypergradient goes back through; null: all of a round's."""
    per_rate: bool = False
    """Divide hypergradients by the student's learning rate, with which they grow and fall. Where that rate falls to
    zero, Adam's memory of the first rounds else keeps the loss from moving in the later ones."""
    teacher: Annotated[LstmConfig | AdamConfig, Field(discriminator="name"), named(DEFAULT_TEACHER)] = LstmConfig()
    """What rewrites the loss."""
    clean_folds: Annotated[Whole, Field(ge=2, le=1000)] | None = 5
    """Folds of the validation images where they are `trusted`: one is validated on, the others are trained on. null:
    ten, or as many as can each fill a validation minibatch; where that is none or one, none are trained on."""
    reweight: ReweightConfig | None = None
    """Data reweighting (paper's DR); null: uniform weights."""
    # For the released code alone (docs/released.md)
    schedule: Literal["pipelined", "lookahead"] = "pipelined"
    """`lookahead` is the released code: two unrolls a round; `pipelined` keeps the single one."""
    batch_norm_buffers: Literal["kept", "dropped"] = "kept"
    """`dropped` reproduces the released code, whose running statistics never move (docs/released.md, D5)."""

    @model_validator(mode="after")
    def _a_memory_needs_statistics(self) -> "L2TDLNConfig":
        if self.batch_norm_buffers == "dropped" and getattr(self.loss, "memory", None) is not None:
            raise ValueError(
                "method.batch_norm_buffers is 'dropped': with batch-norm statistics that never move the student has "
                "no answers to remember; set method.batch_norm_buffers=kept or loss.memory=null"
            )
        return self

    @property
    def needs_forward_derivatives(self) -> bool:
        return self.engine == "forward_over_reverse"

    def learner(self, objective: LearnedObjective, parts: Parts) -> L2TDLN:
        assert parts.teacher is not None
        return L2TDLN(
            objective,
            parts.teacher,
            schedule=self.schedule,
            engine=self.engine,
            horizon=self.horizon,
            per_rate=self.per_rate,
            keeps_buffers=self.batch_norm_buffers == "kept",
        )

    def centers(self, parts: Parts) -> ClassCenters | None:
        return self.reweight and self.reweight.centers(parts)

    def data_with_clean(self, parts: Parts) -> Data:
        if self.clean_images != "trusted":
            return super().data_with_clean(parts)
        num_folds = self.clean_folds or min(MOST_FOLDS, parts.source.most_folds())
        if num_folds < 2:
            _LOG.info("the validation images are validated on alone: they do not fill a validation minibatch twice")
            return parts.source.plain()
        return parts.source.in_folds(num_folds)

    def new_teacher(self, facts: LossFacts) -> LocalTeacher:
        loss = self.first_loss(facts)
        return LocalTeacher(
            loss.phi,
            self.teacher.rule(loss.phi.numel(), seed=facts.seed),
            self.loss.bound(loss),
            SignalToNoise.of(loss, self.teacher.clip),
        )
