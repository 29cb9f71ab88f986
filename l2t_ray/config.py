"""Every knob of an experiment, as frozen records: one place to see what an experiment is.

A configuration is a YAML file; `extends: other.yaml` starts from another one. Command-line overrides and sweeps use
the same dotted keys (`training.learning_rate=0.05`). Unknown keys, wrong types and impossible combinations are
refused with one sentence.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from l2t_ray.interfaces import UserError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


VARIANTS = {"method": "l2t_dln", "control": "cross_entropy", "teacher": "lstm"}
"""Sections that hold one of several variants, told apart by their `name`; and the variant meant without one."""


def _named(section: str) -> BeforeValidator:
    """Lets a variant be written as its bare name, and gives it the default name where it has none."""

    def name_it(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "name" not in value:
            return {"name": VARIANTS[section], **value}
        return value

    return BeforeValidator(name_it)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoiseConfig(Record):
    """Corruption of the training labels (algorithms: Meta-Weight-Net protocol). Validation and test stay clean."""

    kind: Literal["none", "flip_to_two", "flip_to_one", "uniform"] = "none"
    rate: Fraction = 0.0
    """Probability that a label is redrawn (paper: 0.2 and 0.4)."""

    @model_validator(mode="after")
    def _rate_belongs_to_a_kind(self) -> "NoiseConfig":
        if self.kind == "none" and self.rate > 0:
            raise ValueError(f"noise.rate is {self.rate} but noise.kind is 'none'; set noise.kind=flip_to_two")
        return self


class DataConfig(Record):
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"] = "digits"
    root: Path = Path("data")
    """Directory of torchvision's standard layout; the environment variable L2T_DATA, when set, is the default."""
    verify: bool = True
    """Refuse files whose checksums are not the published ones."""
    download: bool = True
    split: Literal["fixed", "redivide"] = "fixed"
    """`fixed`: one division into training and validation part; `redivide`: a fresh one each epoch (paper)."""
    num_validation: Count = 1000
    """Images validated on. They are never trained on within the same epoch."""
    num_train: Count | None = None
    """Use only this many of the remaining images, evenly over classes; null: all."""
    noise: NoiseConfig = NoiseConfig()
    validation_labels: Literal["clean", "observed"] = "clean"
    """`clean`: validation labels are never corrupted; `observed`: they carry the same noise."""
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    augment_validation: bool = False
    """The released code augments validation images as well (algorithms: D6)."""
    crop_padding: Literal["zero", "reflect"] = "zero"
    at_pass_end: Literal["wrap", "lose_step"] = "wrap"
    """`lose_step`: the released code loses one student step whenever a pass over the training part ends."""


class StudentConfig(Record):
    name: Literal["resnet8", "resnet20", "resnet32", "wide_resnet", "lenet"] = "resnet8"
    widths: Literal["narrow", "wide"] = "narrow"
    """ResNets: 16-32-64 channels (He et al. 2016) or 64-128-256 (released code; algorithms: D1)."""
    norm: Literal["batch", "group"] = "batch"
    """`group` makes training independent of the number of workers; batch statistics are each worker's own."""
    shortcut: Literal["conv", "pad"] = "conv"
    depth: Count = 28
    """wide_resnet only: layers (16, 22, 28, 40)."""
    width_factor: Count = 10
    """wide_resnet only."""


class TrainingConfig(Record):
    num_rounds: Count = 1000
    """Teacher updates. The student takes `num_rounds * num_steps` steps."""
    num_steps: Count = 15
    """K, student steps a round (released code: 15)."""
    batch_size: Count = 25
    """Images a student step, over all workers (released code: 25)."""
    val_batch_size: Count = 100
    """Validation images a round, over all workers (released code: 100)."""
    learning_rate: Positive = 0.1
    """Of the student's SGD (paper: 0.1)."""
    momentum: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate over all steps (paper: constant)."""
    eval_every: Count = 25
    """Rounds between passes over the test set; the last round is always followed by one."""
    checkpoint_every: Count = 50
    """Rounds between checkpoints; the last round of each arm always has one."""
    keep_checkpoints: Count = 2


class LossNetworkConfig(Record):
    init: Literal["released", "linear", "cross_entropy", "gce"] = "cross_entropy"
    hidden: Count = 40
    layers: Annotated[int, Field(ge=2)] = 5
    pairs: Literal["sigmoid", "softmax"] = "softmax"
    activation: Literal["leaky_relu", "silu"] = "silu"
    label_entries: Literal["constant", "table"] = "table"
    """`constant`: (1, 0) as in the paper; `table`: a learned entry for each pair of classes in place of the 0."""
    mean: Literal["pairs", "released"] = "pairs"


class LstmConfig(Record):
    name: Literal["lstm"] = "lstm"
    cells: tuple[Count, ...] = (20, 20)
    """Hidden units of each cell (paper: 64, 64, 64, 1)."""
    head: Literal["hidden", "linear"] = "linear"
    """`hidden`: the last hidden state is the step (released code); `linear`: a linear map on it, started at zero."""
    step_size: Positive = 1e-2
    """beta, how far an output of 1 moves a weight (released code: 1e-3)."""
    learning_rate: Positive = 1e-3
    """Of Adam on the LSTM's weights (paper: 1e-3)."""
    horizon: Count = 10
    """Rounds the LSTM is differentiated through (released code: 1)."""

    @model_validator(mode="after")
    def _hidden_head_has_one_unit(self) -> "LstmConfig":
        if self.head == "hidden" and self.cells[-1] != 1:
            raise ValueError(
                f"teacher.head 'hidden' needs a last cell of 1 unit, got teacher.cells {list(self.cells)}; "
                "append 1 to teacher.cells or set teacher.head=linear"
            )
        return self


class AdamConfig(Record):
    name: Literal["adam"] = "adam"
    step_size: Positive = 1e-3
    """Adam's learning rate on the loss network's weights."""


class ReweightConfig(Record):
    metric: Literal["cosine", "dot", "minkowski", "snr"] = "snr"
    positive: Literal["clamp", "softmax", "shift", "softplus", "released"] = "clamp"
    refresh_every: Count = 25


class L2TDLNConfig(Record):
    name: Literal["l2t_dln"] = "l2t_dln"
    schedule: Literal["pipelined", "lookahead"] = "pipelined"
    """`lookahead` is the released code: two unrolls a round; `pipelined` keeps the single one."""
    engine: Literal["auto", "store", "recompute", "forward_over_reverse", "one_step", "finite_difference"] = "store"
    """How second-order products are computed. `auto`: `store` if it fits the memory, else `recompute`; engines
    differ in rounding, so name one where a resumed run must repeat bit for bit. Exact, all but
    `one_step` (derivative of the last step alone) and `finite_difference`, which are there to be compared with."""
    horizon: Count | None = None
    """Student steps the hypergradient goes back through; null: all of a round's."""
    loss_network: LossNetworkConfig = LossNetworkConfig()
    teacher: Annotated[LstmConfig | AdamConfig, Field(discriminator="name"), _named("teacher")] = LstmConfig()
    reweight: ReweightConfig | None = None
    """Data reweighting (paper's DR); null: uniform weights."""
    batch_norm_buffers: Literal["kept", "dropped"] = "kept"
    """`dropped` reproduces the released code, whose running statistics never move (algorithms: D5)."""


class CrossEntropyConfig(Record):
    name: Literal["cross_entropy"] = "cross_entropy"


MethodConfig = Annotated[Union[L2TDLNConfig, CrossEntropyConfig], Field(discriminator="name")]  # noqa: UP007 (a value)


class RayConfig(Record):
    enabled: bool = True
    """false: the same training in this process, without Ray."""
    num_workers: Count = 2
    use_gpu: bool = False
    cpus_per_worker: Positive = 1
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group, each from the last checkpoint."""
    timeout_s: Positive = 300
    """Longest wait for the teacher or for a collective, before the worker gives up."""


class TrackingConfig(Record):
    mlflow: bool = True
    uri: str | None = None
    """null: MLFLOW_TRACKING_URI, or else a SQLite file beside the runs."""
    experiment: str = "l2t_ray"


class ExperimentConfig(Record):
    """One experiment: a student trained twice on the same batches, by `control` and by `method`."""

    name: str | None = None
    """Name of the run directory; null: from the configuration file and the time."""
    seed: Annotated[int, Field(ge=0)] = 0
    runs: Path = Path("runs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    training: TrainingConfig = TrainingConfig()
    method: Annotated[MethodConfig, _named("method")] = L2TDLNConfig()
    control: Annotated[MethodConfig | None, _named("control")] = CrossEntropyConfig()
    """Trained first, with the same student, steps, batches and seed; null: no control."""
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "ExperimentConfig":
        training, workers = self.training, self.ray.num_workers if self.ray.enabled else 1
        for key in ("batch_size", "val_batch_size"):
            if getattr(training, key) < workers:
                raise ValueError(
                    f"training.{key} is {getattr(training, key)}, fewer than ray.num_workers={workers}; "
                    "each worker needs at least one image"
                )
        if self.control is not None and self.control.name == self.method.name:
            raise ValueError(f"control and method are both {self.method.name!r}; set control=null to train it alone")
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name):
            raise ValueError(f"name {self.name!r} must be a plain directory name, without slashes")
        return self

    def arms(self) -> dict[str, L2TDLNConfig | CrossEntropyConfig]:
        """The methods to train, by name, in order."""
        chosen = [self.method] if self.control is None else [self.control, self.method]
        return {method.name: method for method in chosen}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Dotted keys and values, for tracking."""
        return _flatten(self.model_dump(mode="json"))


def load(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a YAML file, with `key.sub=value` overrides on top.

    Raises:
        UserError: if a file, a key or a value is wrong; the message names it and says what to do.
    """
    tree = _read(path, seen=())
    for override in overrides:
        _apply(tree, override)
    return validate(tree, source=str(path))


def validate(tree: Mapping[str, Any], *, source: str) -> ExperimentConfig:
    """As `load`, from nested mappings."""
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_sentence(error, source)) from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself; remove one of its `extends` lines.")
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing file.") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, got a {type(tree).__name__}.")
    base = tree.pop("extends", None)
    return tree if base is None else _merged(_read(path.parent / base, (*seen, path.resolve())), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`. Another variant of a section takes its place: the old one's options do not apply."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if key in VARIANTS and isinstance(value, str):
            value = {"name": value}
        if isinstance(old, dict) and isinstance(value, dict):
            default = VARIANTS.get(key)
            is_other = default is not None and value.get("name", old.get("name")) != old.get("name", default)
            result[key] = value if is_other else _merged(old, value)
        else:
            result[key] = value
    return result


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise UserError(f"override {override!r} is not of the form key.sub=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"the value of override {override!r} is not valid YAML; quote it.") from None
    patch: Any = _number(value) if isinstance(value, str) else value
    for part in reversed(parts):
        patch = {part: patch}
    tree.update(_merged(tree, patch))


def _number(text: str) -> Any:
    """YAML 1.1 reads `1e-3` as text; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(error: ValidationError, source: str) -> str:
    """The first problem of a configuration in one sentence, with the nearest valid key for a misspelt one."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if str(part) not in _TAGS]
    key = ".".join(location) or "the configuration"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(ExperimentConfig, [str(part) for part in first["loc"][:-1]])
        near = difflib.get_close_matches(location[-1], fields, n=1, cutoff=0.5)
        prefix = ".".join(location[:-1])
        hint = f"did you mean {'.'.join(filter(None, [prefix, near[0]]))}?" if near else f"valid: {', '.join(fields)}."
        return f"unknown key {key} in {source}; {hint}"
    context = first.get("ctx", {})
    if first["type"] == "value_error":
        return f"{context['error']} ({source})."
    if first["type"] == "union_tag_invalid":
        return f"{key}.name in {source} must be one of {context['expected_tags']}, got {context['tag']!r}."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} in {source}: {message}, got {first['input']!r}."


_TAGS = ("l2t_dln", "cross_entropy", "lstm", "adam")


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the record at `location`; tags choose a variant of a union."""
    if not location:
        return list(model.model_fields)
    head, *rest = location
    for candidate in _records(model.model_fields[head].annotation):
        is_tagged = bool(rest) and rest[0] in _TAGS
        if is_tagged and candidate.model_fields["name"].default != rest[0]:
            continue
        return _fields_at(candidate, rest[1:] if is_tagged else rest)
    return []


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The record classes that an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in _records(part)]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
