"""The ways to train a student, as frozen records: L2T-DLN and what it is held against."""

from typing import Annotated, Literal, Union

from pydantic import Field, model_validator

from l2t_ray.settings.record import Count, Fraction, NonNegative, Positive, Real, Record, Share, Whole, Width, named

EngineName = Literal["auto", "store", "recompute", "forward_over_reverse", "one_step", "finite_difference"]

DEFAULT_TEACHER = "lstm"


class MethodRecord(Record):
    """What every method has: a name, and a say in what else the validation images are used for."""

    name: str
    label: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=60)] | None = None
    """Name in tables and figures, unique among the arms; null: made from `name` and `clean_images`."""
    clean_images: Literal["judge", "mixed", "fine_tuned", "trusted"] = "judge"
    """What the validation images are for. `judge`: they are validated on, and no more; `mixed`: they are training
    images as well, with their validation labels; `fine_tuned`: as `judge`, but the last rounds train on them alone,
    with plain cross-entropy; `trusted`: as `judge`, but in the last rounds they are trained on as well, with plain
    cross-entropy, while the noisy ones go on under the method's loss. (`l2t_dln` then validates on one fold of them
    and trains on the others, and the folds take turns, each for a pass through the images; `static_dln` trains on
    all of them. Where these two have warm rounds, it begins after those.)"""
    fine_tuning_share: Share = 0.2
    """Share of the rounds that `fine_tuned` gives to the validation images."""
    trusted_share: Share = 0.7
    """Share of the rounds in which `trusted` trains on the validation images as well. `l2t_dln`, and `static_dln` with
    warm rounds, do so from the end of these on instead."""

    @property
    def arm(self) -> str:
        """The name in tables and figures."""
        return self.label or (self.name if self.clean_images == "judge" else f"{self.name}-{self.clean_images}")


class LossNetworkConfig(Record):
    init: Literal["released", "linear", "cross_entropy", "gce"] = "cross_entropy"
    hidden: Width = 40
    layers: Annotated[Whole, Field(ge=0, le=100)] = 5
    """0: no network, the loss is -log p_true, and channel and memory are all that is learned."""
    pairs: Literal["sigmoid", "softmax"] = "softmax"
    activation: Literal["leaky_relu", "silu"] = "silu"
    label_entries: Literal["constant", "table", "channel"] = "table"
    """`constant`: (1, 0) as in the paper; `table`: a learned entry for each pair of classes in place of the 0;
    `channel`: (1, 0), and probabilities go through a learned matrix of label noise before they are paired."""
    memory: Positive | None = None
    """Where the weight of the memory term starts (`core/loss/memory.py`): what the student has said of an image so far
    then counts beside its label. null: it does not. (Liu et al. 2020, without a channel: 3 on CIFAR-10, 7 on
    CIFAR-100.)"""
    mean: Literal["pairs", "released"] = "pairs"
    slope: Literal["bounded", "free"] = "bounded"
    """`bounded`: the network pushes no sample harder than cross-entropy does, nor away from its label by more than 0.3
    of that; `free`: as the teacher will have it (paper). A memory has a bound of its own."""

    @model_validator(mode="after")
    def _a_channel_needs_probabilities(self) -> "LossNetworkConfig":
        if self.label_entries == "channel" and self.pairs != "softmax":
            raise ValueError(
                f"loss_network.label_entries 'channel' needs probabilities that add up to 1, and loss_network.pairs is "
                f"{self.pairs!r}; set loss_network.pairs=softmax or label_entries=table"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learned(self) -> "LossNetworkConfig":
        if self.layers == 1:
            raise ValueError(
                "loss_network.layers is 1, which is no network; set 2 or more, or 0 with a channel or memory"
            )
        if self.layers == 0 and (self.pairs != "softmax" or self.init != "cross_entropy"):
            raise ValueError(
                f"loss_network.layers is 0, cross-entropy on softmax pairs, and loss_network.pairs is {self.pairs!r}, "
                f"loss_network.init {self.init!r}; leave them out or set loss_network.layers=5"
            )
        if self.layers == 0 and self.label_entries == "table":
            raise ValueError(
                "loss_network.layers is 0, and a table needs layers to read it; "
                "set loss_network.label_entries=channel or constant, or loss_network.layers=5"
            )
        if self.layers == 0 and self.label_entries == "constant" and self.memory is None:
            raise ValueError(
                "loss_network.layers is 0, cross-entropy, which needs a channel or memory to have something to learn; "
                "set loss_network.label_entries=channel, loss_network.memory=1 or loss_network.layers=5"
            )
        return self


class AdamConfig(Record):
    name: Literal["adam"] = "adam"
    step_size: Positive = 1e-3
    """Adam's learning rate on the loss network's weights."""
    clip: Positive | None = 1.0
    """Largest norm of a hypergradient: their norms have heavy tails. null: no limit."""


class LstmConfig(Record):
    name: Literal["lstm"] = "lstm"
    cells: Annotated[tuple[Width, ...], Field(min_length=1, max_length=100)] = (20, 20)
    """Hidden units of each cell (paper: 64, 64, 64, 1)."""
    head: Literal["hidden", "linear"] = "linear"
    """`hidden`: the last hidden state is the step (released code); `linear`: a linear map on it, started at zero."""
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

    @model_validator(mode="after")
    def _hidden_head_has_one_unit(self) -> "LstmConfig":
        if self.head == "hidden" and self.cells[-1] != 1:
            raise ValueError(
                f"teacher.head 'hidden' needs a last cell of 1 unit, got teacher.cells {list(self.cells)}; "
                "append 1 to teacher.cells or set teacher.head=linear"
            )
        return self


class ReweightConfig(Record):
    metric: Literal["cosine", "dot", "minkowski", "snr"] = "snr"
    positive: Literal["clamp", "softmax", "shift", "softplus", "released"] = "clamp"
    refresh_every: Count = 25


class LossMethodRecord(MethodRecord):
    """What a method with a loss network has, whether that is taught or not."""

    loss_network: LossNetworkConfig = LossNetworkConfig()
    warm_share: Fraction = 0
    """Share of the rounds, the first ones, that train with plain cross-entropy. A channel is then estimated from the
    student's embeddings (`core/noise_estimate.py`)."""
    channel_estimates: Count = 1
    """How often a channel is estimated: after the warm rounds, and then evenly spaced until half of all are done, with
    a better student each time. Each estimate takes the place of the channel as it was learned until then."""


class L2TDLNConfig(LossMethodRecord):
    """A learned loss, rewritten every round by a teacher (NeurIPS 2023)."""

    name: Literal["l2t_dln"] = "l2t_dln"
    schedule: Literal["pipelined", "lookahead"] = "pipelined"
    """`lookahead` is the released code: two unrolls a round; `pipelined` keeps the single one."""
    engine: EngineName = "store"
    """How second-order products are computed. `auto`: `store` if it fits the memory, else `recompute`; engines differ
    in rounding, so name one where a resumed run must repeat bit for bit. Exact, all but `one_step` (derivative of the
    last step alone) and `finite_difference`, which are there to be compared with."""
    horizon: Count | None = None
    """Student steps the hypergradient goes back through; null: all of a round's."""
    teacher: Annotated[LstmConfig | AdamConfig, Field(discriminator="name"), named(DEFAULT_TEACHER)] = LstmConfig()
    clean_folds: Annotated[Whole, Field(ge=2, le=1000)] = 5
    """Folds of the validation images where they are `trusted`: one judges, the others teach."""
    reweight: ReweightConfig | None = None
    """Data reweighting (paper's DR); null: uniform weights."""
    batch_norm_buffers: Literal["kept", "dropped"] = "kept"
    """`dropped` reproduces the released code, whose running statistics never move (docs/released.md, D5)."""

    @model_validator(mode="after")
    def _a_memory_needs_statistics(self) -> "L2TDLNConfig":
        if self.batch_norm_buffers == "dropped" and self.loss_network.memory is not None:
            raise ValueError(
                "method.batch_norm_buffers is 'dropped': with batch-norm statistics that never move the student has "
                "no answers to remember; set method.batch_norm_buffers=kept or loss_network.memory=null"
            )
        return self


class CrossEntropyConfig(MethodRecord):
    """Plain training: the control that every learned loss is held against."""

    name: Literal["cross_entropy"] = "cross_entropy"


class GCEConfig(MethodRecord):
    """Generalised cross-entropy, a fixed loss made for noisy labels (Zhang & Sabuncu 2018)."""

    name: Literal["gce"] = "gce"
    q: Annotated[Real, Field(gt=0, le=1)] = 0.7
    """0 would be cross-entropy, 1 is the mean absolute error (paper: 0.7)."""


class StaticDLNConfig(LossMethodRecord):
    """The loss network as it starts and as the noise is estimated, without a teacher: what L2T-DLN has beyond this, if
    its other settings are the same, is the teacher's doing. (No clean image has to judge here: where they are
    `trusted`, all of them are trained on at any time.)"""

    name: Literal["static_dln"] = "static_dln"


class ForwardCorrectionConfig(MethodRecord):
    """Cross-entropy through the true noise matrix (Patrini et al. 2017): an oracle, for nobody knows that matrix."""

    name: Literal["forward_correction"] = "forward_correction"


class GLCConfig(MethodRecord):
    """Gold loss correction: through a noise matrix estimated on the clean images (Hendrycks et al. 2018)."""

    name: Literal["glc"] = "glc"
    warm_share: Share = 0.3
    """Share of the rounds that train with plain cross-entropy before the matrix is estimated (not in the paper, whose
    first network has a budget of its own)."""
    restarts: bool = False
    """Begin with a new student after the warm rounds, as the paper does; false: go on with the warm one."""
    clean_images: Literal["mixed"] = "mixed"
    """After the warm rounds the validation images are trained on as well, with uncorrected cross-entropy (paper)."""

    @property
    def arm(self) -> str:
        return self.label or self.name


class MWNetConfig(MethodRecord):
    """Meta-Weight-Net (Shu et al. 2019): a network from a sample's loss to its weight."""

    name: Literal["mw_net"] = "mw_net"
    hidden: Width = 100
    """Hidden units (paper: 100)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the weight network (authors' later script: 1e-3)."""
    weight_decay: NonNegative = 1e-4
    """Of the same Adam (authors' later script: 1e-4)."""


class MentorNetConfig(MethodRecord):
    """MentorNet (Jiang et al. 2018): a curriculum over samples, predefined or learned from data."""

    name: Literal["mentornet"] = "mentornet"
    curriculum: Literal["predefined", "data_driven"] = "predefined"
    """`predefined`: the closed form of the authors' PD curriculum; `data_driven`: a network fitted to which of the
    validation images' observed labels are right (DD)."""
    percentile: Share = 0.75
    """Of a minibatch's losses, below which samples count as easy (authors: 0.75 for PD)."""
    decay: Fraction = 0.5
    """Of the moving percentile (authors' flag: 0.5)."""
    burn_in: Annotated[Whole, Field(ge=0, lt=100)] = 18
    """Percentage of the training during which all weights are 1 (authors: 18)."""
    gamma: Positive = 1.0
    """Width of the linear weighting at the end of the PD curriculum (authors: 1)."""
    dropout_first: Fraction = 0.5
    """Share of each minibatch dropped at random in the first 17 % of the training (authors' example)."""
    dropout_rest: Fraction = 0.05
    """The same, afterwards (authors' example)."""
    fit_steps: Count = 3000
    """Adam steps that fit the DD network, in minibatches of 32 (authors: 30,000, on far more than 1,000 samples)."""


class L2RConfig(MethodRecord):
    """Learning to reweight with deep interactions (Fan et al. 2021): a teacher that reads the student's features."""

    name: Literal["l2r"] = "l2r"
    hidden: Width = 128
    """Hidden units of the teacher (not published)."""
    label_size: Width = 16
    """Length of the label embedding (not published)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the teacher (not published)."""
    horizon: Count | None = None
    """B, student steps the derivative goes back through (not published); null: all of a round's."""
    engine: Literal["store", "recompute"] = "store"
    """As the method's; the mean weight of a global minibatch cannot be differentiated forward."""


class SLFConfig(MethodRecord):
    """Stochastic loss function (Liu & Lai 2020): gates over fixed losses. Our rendering; no code was published."""

    name: Literal["slf"] = "slf"
    mode: Literal["validation", "single"] = "validation"
    """`validation`: gates learn from the validation error through one virtual step; `single`: from the training loss,
    in the same pass as the student."""
    hidden: Width = 64
    """Hidden units of the decision network (not published)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the decision network (not published)."""
    temperature_start: Positive = 1.0
    """Of the gates (not published); falls geometrically over the rounds."""
    temperature_end: Positive = 0.1
    scale_decay: Fraction = 0.9
    """Of the running mean by which each candidate loss is divided (not published)."""


MethodConfig = Annotated[
    Union[  # noqa: UP007 (a value, not an annotation)
        L2TDLNConfig,
        CrossEntropyConfig,
        GCEConfig,
        StaticDLNConfig,
        ForwardCorrectionConfig,
        GLCConfig,
        MWNetConfig,
        MentorNetConfig,
        L2RConfig,
        SLFConfig,
    ],
    Field(discriminator="name"),
]
