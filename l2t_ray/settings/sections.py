"""The sections of an experiment that hold one kind of thing, as frozen records: data, training, Ray, tracking."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from l2t_ray.data.placements import Augment
from l2t_ray.data.sets import DATA_SETS
from l2t_ray.import_path import is_import_path
from l2t_ray.settings.record import (
    Count,
    FilePath,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Real,
    Record,
    Seconds,
    Share,
    Steps,
    Text,
    Whole,
)
from l2t_ray.tasks.detection import DetectionError
from l2t_ray.tasks.pixel_terms import SegmentationTerm
from l2t_ray.tasks.segmentation import AuxiliaryLoss, SegmentationError
from l2t_ray.tasks.yolo_loss import DetectionLoss

BOX_NOISE = ("shifted", "scaled", "dropped", "mislabelled", "mixed")
"""Kinds of noise that are of boxes."""


class NoiseConfig(Record):
    """Corruption of the training labels (protocol: Shu et al. 2019). Validation and test stay clean."""

    kind: Literal[
        "none",
        "flip_to_two",
        "flip_to_one",
        "uniform",
        "flip_to_similar",
        "matrix",
        "labels",
        "shifted",
        "scaled",
        "dropped",
        "mislabelled",
        "mixed",
    ] = "none"
    """`flip_to_two`, `flip_to_one`, `uniform`: the published protocol; `flip_to_similar`: to the two classes that look
    most alike (CIFAR alone, data/similar.py); `matrix`: by the transition matrix in `file`; `labels`: as in `file`.
    Of boxes: `shifted`, `scaled`, `dropped`, `mislabelled`, or `mixed`: any of these (data/box_noise.py)."""
    rate: Fraction = 0.0
    """Probability that a label is redrawn (paper: 0.2 and 0.4), or a box is hit."""
    strength: Share = 0.4
    """How far boxes are shifted and scaled: up to this share of their width and height."""
    file: FilePath | None = None
    """Of `matrix` and `labels`: .npy, .npz, .csv, .parquet or .pt; one label a training image, in the set's order."""
    column: Text | None = None
    """Which array or column of the file, where it has several (CIFAR-10N: worse_label, aggre_label, ...)."""

    @model_validator(mode="after")
    def _settings_belong_to_the_kind(self) -> "NoiseConfig":
        is_file = self.kind in ("matrix", "labels")
        if self.kind == "none" and self.rate > 0:
            raise ValueError(f"noise.rate is {self.rate} but noise.kind is 'none'; set noise.kind=flip_to_two")
        if self.strength != 0.4 and self.kind not in ("shifted", "scaled", "mixed"):
            raise ValueError(
                f"noise.strength is {self.strength}, which noise.kind={self.kind} does not read; set "
                "noise.kind=shifted, scaled or mixed, or leave it out"
            )
        if is_file and self.rate > 0:
            raise ValueError(f"noise.rate is {self.rate}, but with noise.kind={self.kind} the file decides; remove it")
        if is_file and self.file is None:
            raise ValueError(f"noise.kind is {self.kind!r}; set noise.file to the file that has the {self.kind}")
        if not is_file and (self.file or self.column):
            raise ValueError(
                f"noise.file and noise.column are not read with noise.kind={self.kind}; set noise.kind=labels or matrix"
            )
        return self


class ImbalanceConfig(Record):
    """Training classes of unequal size, thinned out before the labels are corrupted. Validation and test images stay as
    they are."""

    kind: Literal["none", "exponential", "step", "rare"] = "none"
    """How many images each class keeps (data/imbalance.py). `exponential`: class c of C has n_max * factor^(-c / (C -
    1)), as in Meta-Weight-Net and Cui et al. 2019; `step`: the first half of the classes have n_max, the others
    n_max / factor, as in Cao et al. 2019. n_max is what `num_train` leaves of a class. `rare`: of the images that have
    the class `of`, one in `factor` is kept; of images with boxes as well."""
    factor: Annotated[Real, Field(ge=1, le=1000)] = 1.0
    """How many times as many images the largest class has as the smallest (published: 10 to 200)."""
    of: Text | None = None
    """The class of `rare`, by name."""

    @model_validator(mode="after")
    def _factor_belongs_to_a_kind(self) -> "ImbalanceConfig":
        if self.kind == "none" and self.factor != 1:
            raise ValueError(
                f"imbalance.factor is {self.factor:g} but imbalance.kind is 'none'; set imbalance.kind=exponential"
            )
        if self.kind != "none" and "factor" not in self.model_fields_set:
            raise ValueError(f"imbalance.kind is {self.kind!r}; set imbalance.factor too, for instance to 100")
        if self.kind == "rare" and self.of is None:
            raise ValueError("imbalance.kind is 'rare'; set imbalance.of to the name of the class that is to be rare")
        if self.kind != "rare" and self.of is not None:
            raise ValueError(
                f"imbalance.of is {self.of!r}, which imbalance.kind={self.kind} does not read; set imbalance.kind=rare"
            )
        return self


Enlargement = Annotated[Real, Field(ge=0.1, le=10)]
"""A factor by which images change size before they are cropped."""


class MasksConfig(Record):
    """The crops of images with masks, and how many of its pixels are trained on."""

    shrink: Annotated[Whole, Field(ge=1, le=64)] = 1
    """How many times less height and width images and masks are given once they are read; 1: they stay as they are."""
    crop: Annotated[Whole, Field(ge=8, le=4096)] = 64
    """Height and width of the crops (paper: 380)."""
    scale: tuple[Enlargement, Enlargement] = (0.5, 2.0)
    """The least and the largest factor by which an image is enlarged before it is cropped, with augment=crop or
    crop_flip."""
    pixels: Count | None = None
    """Pixels of each crop that are trained on, drawn anew in each step; null: all that count."""
    error: SegmentationError = "cross_entropy"
    """The validation error of a learned loss: of all pixels of a validation minibatch."""
    terms: Annotated[tuple[SegmentationTerm, ...], Field(min_length=1)] = ("cross_entropy", "jaccard")
    """What the task's own loss is the sum of, and `loss: terms` a combination: cross-entropy, with a weight for each
    class; focal loss; cross-entropy of pixels that touch another class (`boundary`); one minus the soft overlap,
    Jaccard or Dice, of each image, or of the minibatch as a whole: each worker's own slice, by its share."""
    auxiliary: AuxiliaryLoss = "cross_entropy"
    """What a student's auxiliary head is trained under: plain cross-entropy, or the `same` loss as the main head."""
    auxiliary_weight: NonNegative = 0.4
    """What the auxiliary head's loss counts (PSPNet: 0.4)."""

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> "MasksConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"masks.scale is {list(self.scale)}; give the least factor first")
        if self.pixels is not None and self.pixels > self.crop**2:
            raise ValueError(
                f"masks.pixels is {self.pixels}, more than the {self.crop**2} pixels of masks.crop={self.crop} squared"
            )
        if len(set(self.terms)) < len(self.terms):
            raise ValueError(f"masks.terms is {list(self.terms)}; name each term once")
        return self


def _both_sides(value: Any) -> Any:
    """One number is height and width."""
    return value if isinstance(value, list | tuple) else (value, value)


Side = Annotated[Whole, Field(ge=32, le=4096, multiple_of=32)]


class BoxesConfig(Record):
    """How images with boxes are laid into inputs of one size."""

    size: Annotated[tuple[Side, Side], BeforeValidator(_both_sides)] = (416, 416)
    """Height and width of the inputs, multiples of 32; one number: both. Images keep their proportions, and lie in the
    middle of what is left."""
    scale: tuple[Enlargement, Enlargement] = (0.8, 1.5)
    """The least and the largest factor by which an image is enlarged beyond that, with augment=crop or
    crop_flip."""
    loss: DetectionLoss = "darknet"
    """The form of the loss whose terms are minimised: Darknet's, with cross-entropies, or the paper's squares."""
    error: DetectionError = "edet"
    """The validation error of a learned loss: a soft average precision (`edet50`: of boxes that overlap by half), or
    the loss itself, `total`."""
    by_class: bool = False
    """A learned combination weighs l_cls by class, and not by stride."""

    @model_validator(mode="after")
    def _least_comes_first(self) -> "BoxesConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"boxes.scale is {list(self.scale)}; give the least factor first")
        return self


def _known_set(name: str) -> str:
    if name in DATA_SETS or is_import_path(name):
        return name
    near = difflib.get_close_matches(name, DATA_SETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(DATA_SETS)}, or my.module:make"
    raise PydanticCustomError("data_set", "must name a data set; {hint}", {"hint": hint})


class DataConfig(Record):
    name: Annotated[Text, AfterValidator(_known_set)] = "digits"
    """One of data/sets.py, or a function of your own, as my.module:make. `folder` and `mask_folder`: your own images,
    below `root` (data/own.py and data/mask_sets/mask_folders.py say how)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function that opens the set, such as `num_train` of `digit_scenes`."""
    root: FilePath | None = None
    """Directory of the set's files, for instance in torchvision's layout; null: the environment variable L2T_DATA, or
    else `data`."""
    verify: bool = True
    """Refuse files whose checksums are not the published ones."""
    download: bool = True
    split: Literal["fixed", "redivide"] = "fixed"
    """`fixed`: one division into training and validation part; `redivide`: a fresh one each epoch (paper)."""
    num_validation: Count = 1000
    """Images validated on. They are never trained on within the same epoch. Own images that are set apart for
    validation are all used."""
    num_train: Count | None = None
    """Use only this many of the remaining images, evenly over classes; null: all."""
    image_size: Annotated[Whole, Field(ge=1, le=4096)] | None = None
    """Reduce the images to this height and width by averaging squares of pixels (CIFAR: 16, 8); null: as they are.
    Own images are scaled to any size."""
    imbalance: ImbalanceConfig = ImbalanceConfig()
    noise: NoiseConfig = NoiseConfig()
    validation_labels: Literal["clean", "observed"] = "clean"
    """`clean`: validation labels are never corrupted; `observed`: they carry the same noise."""
    augment: Augment = "crop_flip"
    """What is drawn for each training image; images with masks are cropped in any case (`masks`). `crop`: for what
    means another thing in a mirror, as digits and letters do."""
    augment_validation: bool = False
    """The released code augments validation images as well (docs/released.md, D6)."""
    crop_padding: Literal["zero", "reflect"] = "zero"
    masks: MasksConfig = MasksConfig()
    boxes: BoxesConfig = BoxesConfig()
    at_pass_end: Literal["wrap", "lose_step"] = "wrap"
    """`lose_step`: the released code loses one student step whenever a pass over the training part ends."""

    @model_validator(mode="after")
    def _one_training_part_is_thinned_out(self) -> "DataConfig":
        if self.imbalance.kind != "none" and self.split == "redivide":
            raise ValueError(
                f"data.imbalance.kind is {self.imbalance.kind!r}, and with data.split=redivide every image is trained "
                "on in turn; set data.split=fixed"
            )
        return self


class TrainingConfig(Record):
    num_rounds: Count = 1000
    """Teacher updates. The student takes `num_rounds * num_steps` steps."""
    num_steps: Steps = 15
    """K, student steps a round (released code: 15)."""
    batch_size: Count = 25
    """Images a student step, over all workers (released code: 25)."""
    val_batch_size: Count = 100
    """Validation images a round, over all workers (released code: 100)."""
    learning_rate: Positive = 0.1
    """Of the student's optimizer (paper: SGD with 0.1). With adam and adamw it has to be set."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Of the student. The derivative of the validation error goes through its steps exactly (bilevel/optimizers.py)."""
    momentum: Fraction = 0.0
    """Of `sgd`."""
    nesterov: bool = False
    """Whether a step of `sgd` looks ahead along the momentum."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Of `adam` and `adamw`: how much of the first and the second moment is kept in a step."""
    eps: Positive = 1e-8
    """Of `adam` and `adamw`: added to the root of the second moment."""
    eps_root: NonNegative = 0.0
    """Of `adam` and `adamw`: added below the root, which bounds its slope where gradients vanish."""
    weight_decay: NonNegative = 0.0
    """`sgd` and `adam` add it to the gradient; `adamw` decays the weights beside it."""
    clip: Positive | None = None
    """Largest norm of the gradient of a minibatch; longer ones are scaled down to it. null: any."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: the student's operations are computed in it where torch holds that to be safe (`torch.autocast`), in
    the second-order products too. Weights, the loss, and what is carried from step to step and back stay in float32."""
    decay: Literal["constant", "cosine", "drops"] = "constant"
    """Schedule of the learning rate over all steps (paper: constant). `drops`: a tenth from each of `drops` on."""
    drops: tuple[Fraction, ...] = ()
    """Shares of the training after which the learning rate drops (Meta-Weight-Net: 2/3 and 5/6)."""
    eval_every: Count = 25
    """Rounds between passes over the test set; the last round is always followed by one."""
    checkpoint_every: Count = 50
    """Rounds between checkpoints; the last round of each arm always has one."""
    keep_checkpoints: Count = 2
    try_first: bool = True
    """Try a round of each arm on a few images before anything is trained, and hold its derivatives against finite
    differences: a second or two. false: what cannot be trained is found where it fails, or not at all."""

    @model_validator(mode="after")
    def _settings_belong_to_the_optimizer(self) -> "TrainingConfig":
        own = {"momentum", "nesterov"} if self.optimizer == "sgd" else {"betas", "eps", "eps_root"}
        for key in ("momentum", "nesterov", "betas", "eps", "eps_root"):
            value, unset = getattr(self, key), type(self).model_fields[key].default
            if key not in own and value != unset:
                given = list(value) if isinstance(value, tuple) else value
                other = "sgd" if self.optimizer != "sgd" else "adam or adamw"
                raise ValueError(
                    f"training.{key} is {given}, and is not read with training.optimizer={self.optimizer}; leave it "
                    f"out, or set training.optimizer={other}"
                )
        if self.nesterov and not self.momentum:
            raise ValueError("training.nesterov looks ahead along the momentum, and training.momentum is 0; set one")
        if self.optimizer != "sgd" and "learning_rate" not in self.model_fields_set:
            raise ValueError(
                f"training.learning_rate is {self.learning_rate}, which is for sgd; set that of {self.optimizer}, for "
                "instance training.learning_rate=0.001"
            )
        return self

    @model_validator(mode="after")
    def _drops_belong_to_their_schedule(self) -> "TrainingConfig":
        if bool(self.drops) != (self.decay == "drops"):
            raise ValueError(
                f"training.drops is {list(self.drops)} and training.decay {self.decay!r}; give both, as in "
                "training.decay=drops and training.drops=[0.5,0.75], or neither"
            )
        return self


class RayConfig(Record):
    enabled: bool = True
    """false: the same training in this process, without Ray."""
    num_workers: Count = 2
    min_workers: Count | None = None
    """Go on with as few as this many where machines are lost, and with more again when they come; null: wait."""
    use_gpu: bool = False
    cpus_per_worker: Positive = 1
    max_failures: Natural = 3
    """Restarts of the worker group, each from the last checkpoint."""
    timeout_s: Seconds = 300
    """Longest wait for the teacher or for a collective, before the worker gives up."""
    teacher_on_gpu_node: bool = False
    """false: the teacher keeps off machines with GPUs as long as there is another one."""

    @model_validator(mode="after")
    def _at_least_is_not_more_than_at_most(self) -> "RayConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"ray.min_workers is {self.min_workers}, more than ray.num_workers={self.num_workers}")
        return self


class TrackingConfig(Record):
    mlflow: bool = True
    uri: Text | None = None
    """null: MLFLOW_TRACKING_URI, or else a SQLite file beside the runs."""
    experiment: Text = "l2t_ray"
    profile: bool = False
    """Trace the third and fourth round of each arm into profile/*.json.gz (worker 0), which opens in Perfetto."""
