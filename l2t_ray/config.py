"""Every knob of an experiment, as frozen records: one place to see what an experiment is.

A configuration is a YAML file; `extends: other.yaml` starts from another one. Command-line overrides and sweeps use
the same dotted keys (`training.learning_rate=0.05`). Unknown keys, wrong types and impossible combinations are
refused with one sentence.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from l2t_ray.interfaces import UserError
from l2t_ray.method_config import (
    DEFAULT_TEACHER,
    AdamConfig,
    CrossEntropyConfig,
    ForwardCorrectionConfig,
    GCEConfig,
    GLCConfig,
    L2RConfig,
    L2TDLNConfig,
    LossNetworkConfig,
    LstmConfig,
    MentorNetConfig,
    MethodConfig,
    MethodRecord,
    MWNetConfig,
    ReweightConfig,
    SLFConfig,
    StaticDLNConfig,
)
from l2t_ray.record import Count, Fraction, Positive, Record, named

__all__ = [
    "AdamConfig",
    "CrossEntropyConfig",
    "DataConfig",
    "ExperimentConfig",
    "ForwardCorrectionConfig",
    "GCEConfig",
    "GLCConfig",
    "L2RConfig",
    "L2TDLNConfig",
    "LossNetworkConfig",
    "LstmConfig",
    "MWNetConfig",
    "MentorNetConfig",
    "MethodConfig",
    "MethodRecord",
    "NoiseConfig",
    "RayConfig",
    "ReweightConfig",
    "SLFConfig",
    "StaticDLNConfig",
    "StudentConfig",
    "TrackingConfig",
    "TrainingConfig",
    "load",
    "read_tree",
    "validate",
    "validated",
]

_PLAIN = r"\w(?:[\w .+=-]*[\w.+=-])?"
_LONGEST_NAME = 120
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)

VARIANTS = {"method": "l2t_dln", "teacher": DEFAULT_TEACHER}
"""Sections that hold one of several variants, told apart by their `name`; and the variant meant without one."""


def _as_list(value: Any) -> Any:
    """Nothing, or one alone, where a list is meant."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else value


class NoiseConfig(Record):
    """Corruption of the training labels (protocol: Shu et al. 2019). Validation and test stay clean."""

    kind: Literal["none", "flip_to_two", "flip_to_one", "uniform", "flip_to_similar", "matrix", "labels"] = "none"
    """`flip_to_two`, `flip_to_one`, `uniform`: the published protocol; `flip_to_similar`: to the two classes that look
    most alike (CIFAR alone, data/similar.py); `matrix`: by the transition matrix in `file`; `labels`: as in `file`."""
    rate: Fraction = 0.0
    """Probability that a label is redrawn (paper: 0.2 and 0.4)."""
    file: Path | None = None
    """Of `matrix` and `labels`: .npy, .npz, .csv, .parquet or .pt; one label a training image, in the set's order."""
    column: str | None = None
    """Which array or column of the file, where it has several (CIFAR-10N: worse_label, aggre_label, ...)."""

    @model_validator(mode="after")
    def _settings_belong_to_the_kind(self) -> "NoiseConfig":
        is_file = self.kind in ("matrix", "labels")
        if self.kind == "none" and self.rate > 0:
            raise ValueError(f"noise.rate is {self.rate} but noise.kind is 'none'; set noise.kind=flip_to_two")
        if is_file and self.rate > 0:
            raise ValueError(f"noise.rate is {self.rate}, but with noise.kind={self.kind} the file decides; remove it")
        if is_file and self.file is None:
            raise ValueError(f"noise.kind is {self.kind!r}; set noise.file to the file that has the {self.kind}")
        if not is_file and (self.file or self.column):
            raise ValueError(
                f"noise.file and noise.column are not read with noise.kind={self.kind}; set noise.kind=labels or matrix"
            )
        return self


class DataConfig(Record):
    name: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_coarse", "folder"] = "digits"
    """`folder`: your own images, below `root` (data/own.py says how)."""
    root: Path | None = None
    """Directory of torchvision's standard layout; null: the environment variable L2T_DATA, or else `data`."""
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
    image_size: Count | None = None
    """Reduce the images to this height and width by averaging squares of pixels (CIFAR: 16, 8); null: as they are.
    Own images are scaled to any size."""
    noise: NoiseConfig = NoiseConfig()
    validation_labels: Literal["clean", "observed"] = "clean"
    """`clean`: validation labels are never corrupted; `observed`: they carry the same noise."""
    augment: Literal["none", "flip", "crop_flip"] = "crop_flip"
    augment_validation: bool = False
    """The released code augments validation images as well (docs/released.md, D6)."""
    crop_padding: Literal["zero", "reflect"] = "zero"
    at_pass_end: Literal["wrap", "lose_step"] = "wrap"
    """`lose_step`: the released code loses one student step whenever a pass over the training part ends."""


class StudentConfig(Record):
    name: Literal["resnet8", "resnet20", "resnet32", "wide_resnet", "lenet"] = "resnet8"
    widths: Literal["narrow", "wide"] = "narrow"
    """ResNets: 16-32-64 channels (He et al. 2016) or 64-128-256 (released code; docs/released.md, D1)."""
    norm: Literal["batch", "group"] = "batch"
    """`group` makes training independent of the number of workers; batch statistics are each worker's own."""
    sync_batchnorm: bool = False
    """Batch statistics of the global minibatch instead of each worker's own slice."""
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
    decay: Literal["constant", "cosine", "drops"] = "constant"
    """Schedule of the learning rate over all steps (paper: constant). `drops`: a tenth from each of `drops` on."""
    drops: tuple[Fraction, ...] = ()
    """Shares of the training after which the learning rate drops (Meta-Weight-Net: 2/3 and 5/6)."""
    eval_every: Count = 25
    """Rounds between passes over the test set; the last round is always followed by one."""
    checkpoint_every: Count = 50
    """Rounds between checkpoints; the last round of each arm always has one."""
    keep_checkpoints: Count = 2

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
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group, each from the last checkpoint."""
    timeout_s: Positive = 300
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
    uri: str | None = None
    """null: MLFLOW_TRACKING_URI, or else a SQLite file beside the runs."""
    experiment: str = "l2t_ray"
    profile: bool = False
    """Trace the third and fourth round of each arm into profile/*.json.gz (worker 0), which opens in Perfetto."""


class ExperimentConfig(Record):
    """One experiment: a student trained on the same data by each of `controls`, and by `method`."""

    name: str | None = None
    """Name of the run directory; null: from the configuration file and the time."""
    seed: Annotated[int, Field(ge=0)] = 0
    runs: Path = Path("runs")
    storage: str | None = None
    """Where checkpoints are copied to as well, and begun from: a URI that pyarrow knows (s3://bucket/folder, gs://,
    hdfs://, file://). Machines need no common file system then. null: all machines see `runs`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    student: StudentConfig = StudentConfig()
    training: TrainingConfig = TrainingConfig()
    method: Annotated[MethodConfig, named(VARIANTS["method"])] = L2TDLNConfig()
    controls: Annotated[tuple[Annotated[MethodConfig, named("cross_entropy")], ...], BeforeValidator(_as_list)] = (
        CrossEntropyConfig(),
    )
    """Trained first, in this order, with the same student, steps and seed; []: none."""
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
        names = [method.arm for method in self._methods()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two of controls and method are both called {name!r}; give one a label of its own, leave it out "
                    "of controls, or set controls=[] to train the method alone"
                )
        if self.ray.enabled and any(isinstance(control, L2TDLNConfig) for control in self.controls):
            raise ValueError(
                "on Ray l2t_dln can be the method alone, since a run has one teacher; take it out of controls or set "
                "ray.enabled=false"
            )
        for method in self._methods():
            if method.clean_images != "judge" and self.data.split == "redivide":
                raise ValueError(
                    f"{method.arm} trains on validation images, and data.split is 'redivide': every image would be "
                    "trained on with its clean label; set data.split=fixed"
                )
        for method in self._methods():
            if self.data.validation_labels == "observed" and (
                isinstance(method, GLCConfig)
                or (isinstance(method, MentorNetConfig) and method.curriculum == "data_driven")
            ):
                raise ValueError(
                    f"{method.arm} learns from clean validation labels which of the others are wrong, and "
                    "data.validation_labels is 'observed'; set data.validation_labels=clean or leave it out"
                )
        for method in self._methods():
            if self.student.sync_batchnorm and getattr(method, "engine", "store") == "forward_over_reverse":
                raise ValueError(
                    "student.sync_batchnorm cannot be differentiated forward; set method.engine=store or recompute"
                )
        if self.name is not None and not (re.fullmatch(_PLAIN, self.name) and len(self.name.encode()) <= _LONGEST_NAME):
            raise ValueError(
                f"name {self.name[:40]!r} must be a plain directory name: letters, digits and ' .+=_-', not beginning "
                f"with one of these but _, at most {_LONGEST_NAME} bytes"
            )
        if self.ray.enabled and self.device != "auto":
            raise ValueError(
                f"device={self.device} is for runs without Ray; set ray.use_gpu={str(self.device == 'cuda').lower()} "
                "and device=auto, or ray.enabled=false"
            )
        return self

    def arms(self) -> dict[str, MethodConfig]:
        """The methods to train, by name, in order."""
        return {method.arm: method for method in self._methods()}

    def _methods(self) -> list[MethodConfig]:
        return [*self.controls, self.method]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Dotted keys and values, for tracking."""
        return _flatten(self.model_dump(mode="json"))


def load(path: Path, overrides: Sequence[str] = (), *, source: str | None = None) -> ExperimentConfig:
    """The experiment of a YAML file, with `key.sub=value` overrides on top.

    Args:
        source: where the user wrote what may be wrong, for messages; None: in the file.

    Raises:
        UserError: if a file, a key or a value is wrong; the message names it and says what to do.
    """
    tree = read_tree(path)
    for override in overrides:
        _apply(tree, override)
    return validate(tree, source=source or str(path))


def validate(tree: Mapping[str, Any], *, source: str) -> ExperimentConfig:
    """As `load`, from nested mappings."""
    return validated(ExperimentConfig, tree, source=source)


def validated(record: type[AnyRecord], tree: Mapping[str, Any], *, source: str) -> AnyRecord:
    """Any record from nested mappings; what is wrong is said in one sentence, as a `UserError`."""
    try:
        return record.model_validate(tree)
    except ValidationError as error:
        raise UserError(_sentence(error, record, source)) from None


def read_tree(path: Path) -> dict[str, Any]:
    """The nested mappings of a YAML file, on top of what it extends.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    return _read(path, seen=())


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself; remove one of its `extends` lines.")
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8; give a YAML file.") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, got a {type(tree).__name__}.")
    base = tree.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"extends in {path} must be the path of another configuration, got {base!r}.")
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
            old_name = old.get("name", default)
            is_other = default is not None and value.get("name", old_name) != old_name
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


def _sentence(error: ValidationError, record: type[BaseModel], source: str) -> str:
    """The first problem of a configuration in one sentence, with the nearest valid key for a misspelt one."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if str(part) not in _TAGS]
    key = ".".join(location) or "the configuration"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(record, [str(part) for part in first["loc"][:-1]])
        near = difflib.get_close_matches(location[-1], fields, n=1, cutoff=0.5)
        prefix = ".".join(location[:-1])
        hint = f"did you mean {'.'.join(filter(None, [prefix, near[0]]))}?" if near else f"valid: {', '.join(fields)}."
        return f"unknown key {key} in {source}; {hint}"
    context = first.get("ctx", {})
    if first["type"] == "value_error":
        return f"{context['error']} ({source})."
    if first["type"] == "union_tag_invalid":
        return f"{key}.name in {source} must be one of {context['expected_tags']}, got {context['tag']!r}."
    if first["type"] in ("model_type", "model_attributes_type"):
        section = _fields_at(record, [str(part) for part in first["loc"]])
        if section:
            example = f"{key}.{section[0]}={first['input']}"
            return f"{key} in {source} is a section with the keys {', '.join(section)}; set for instance {example}."
    if first["type"] == "missing":
        return f"{source} lacks {key}, which must be given."
    message = _IN_YAML.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    return f"{key} in {source}: {message}, got {first['input']!r}."


_IN_YAML = {"dict_type": "must hold keys and values", "tuple_type": "must be a list", "list_type": "must be a list"}
"""pydantic's messages speak of Python where people wrote YAML."""


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the record at `location`; tags choose a variant of a union, numbers a place in a list."""
    if not location:
        return list(model.model_fields)
    head, *rest = location
    if head not in model.model_fields:  # a key of a mapping of records
        return _fields_at(model, rest)
    rest = rest[1:] if rest and rest[0].isdigit() else rest
    for candidate in _records(model.model_fields[head].annotation):
        is_tagged = bool(rest) and rest[0] in _TAGS
        if is_tagged and candidate.model_fields["name"].default != rest[0]:
            continue
        return _fields_at(candidate, rest[1:] if is_tagged else rest)
    return []


def _tags(model: type[BaseModel]) -> Iterator[str]:
    """The names that tell variants apart, of the record and all records in it."""
    for key, field in model.model_fields.items():
        if key == "name" and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            yield field.default
        for record in _records(field.annotation):
            yield from _tags(record)


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


_TAGS = frozenset(_tags(ExperimentConfig))
