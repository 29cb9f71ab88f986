"""Every knob of an experiment, as frozen records: one place to see what an experiment is.

A configuration is a YAML file; `extends: other.yaml` starts from another one. Command-line overrides and sweeps use
the same dotted keys (`training.learning_rate=0.05`). Unknown keys, wrong types and impossible combinations are
refused with one sentence.
"""

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    WrapValidator,
    model_validator,
)

from l2t_ray.data.sets import DATA_SETS
from l2t_ray.import_path import directories, is_import_path, look_in
from l2t_ray.interfaces import UserError
from l2t_ray.methods.registry import DEFAULT_CONTROL, DEFAULT_METHOD, METHODS
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings import yaml_file
from l2t_ray.settings.record import FilePath, Natural, Record, Text, named, one_of
from l2t_ray.settings.sections import DataConfig, NoiseConfig, RayConfig, TrackingConfig, TrainingConfig
from l2t_ray.settings.sentence import sentence
from l2t_ray.settings.student_section import StudentSettings, lacking_of_images, own_student, student_record
from l2t_ray.settings.task_section import TaskSettings, own_task
from l2t_ray.settings.tree import COMMAND_LINE, Settings, parsed
from l2t_ray.students.known import DEFAULT_STUDENT, STUDENTS

__all__ = [
    "DataConfig",
    "ExperimentConfig",
    "NoiseConfig",
    "RayConfig",
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


def _as_list(value: Any) -> Any:
    """Nothing, or one alone, where a list is meant."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping) else value


def _student_of_ones_own(value: Any, by_name: Callable[[Any], Any]) -> Any:
    """A student that the user brings, by import path or as settings; any other one `by_name`."""
    if isinstance(value, StudentSettings) and value.name not in STUDENTS:
        return value
    own = own_student(value)
    return by_name(value) if own is None else own.model_validate(value)


if TYPE_CHECKING:
    MethodConfig = ControlConfig = MethodSettings
    StudentConfig = StudentSettings
    TaskConfig = TaskSettings
else:
    _Known = one_of(METHODS, MethodSettings)
    MethodConfig = Annotated[_Known, named(DEFAULT_METHOD.model_fields["name"].default)]
    ControlConfig = Annotated[_Known, named(DEFAULT_CONTROL.model_fields["name"].default)]
    StudentConfig = Annotated[
        Union[tuple(student_record(name) for name in STUDENTS)],  # noqa: UP007 (a value, not an annotation)
        Field(discriminator="name"),
        WrapValidator(_student_of_ones_own),
        SerializeAsAny(),
        named(DEFAULT_STUDENT),
    ]
    TaskConfig = Annotated[TaskSettings, WrapValidator(lambda value, handler: own_task(value)), SerializeAsAny()]


class ExperimentConfig(Record):
    """One experiment: a student trained on the same data by each of `controls`, and by `method`."""

    name: Text | None = None
    """Name of the run directory; null: from the configuration file and the time."""
    seed: Natural = 0
    runs: FilePath = Path("runs")
    storage: Text | None = None
    """Where checkpoints are copied to as well, and begun from: a URI that pyarrow knows (s3://bucket/folder, gs://,
    hdfs://, file://). Machines need no common file system then. null: all machines see `runs`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    student: StudentConfig = student_record(DEFAULT_STUDENT)()  # pyright: ignore[reportCallIssue]
    """What is taught: a student by its name or by the import path of a function that makes one."""
    task: TaskConfig | None = None
    """What outputs and targets mean, by the import path of a task of one's own; null: what the data is labelled with
    says."""
    training: TrainingConfig = TrainingConfig()
    method: MethodConfig = DEFAULT_METHOD()
    controls: Annotated[tuple[ControlConfig, ...], BeforeValidator(_as_list)] = (DEFAULT_CONTROL(),)
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
        if self.data.name in DATA_SETS and (lacking := lacking_of_images(self.student.name)):
            raise ValueError(
                f"student {self.student.name!r} cannot be made for images: it must take "
                f"num_classes, in_channels, image_size by name, and lacks {', '.join(lacking)}"
            )
        names = [method.arm for method in self._methods()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two of controls and method are both called {name!r}; give one a label of its own, leave it out "
                    "of controls, or set controls=[] to train the method alone"
                )
        taught = next((control for control in self.controls if control.has_teacher), None)
        if self.ray.enabled and taught is not None:
            raise ValueError(
                f"on Ray {taught.name} can be the method alone, since a run has one teacher; take it out of controls "
                "or set ray.enabled=false"
            )
        for method in self._methods():
            if method.trains_on_validation and self.data.split == "redivide":
                raise ValueError(
                    f"{method.arm} trains on validation images, and data.split is 'redivide': every image would be "
                    "trained on with its clean label; set data.split=fixed"
                )
            if method.needs_clean_validation_labels and self.data.validation_labels == "observed":
                raise ValueError(
                    f"{method.arm} learns from clean validation labels which of the others are wrong, and "
                    "data.validation_labels is 'observed'; set data.validation_labels=clean or leave it out"
                )
            if method.needs_forward_derivatives and self.student.sync_batchnorm:
                raise ValueError(
                    "student.sync_batchnorm cannot be differentiated forward; set method.engine=store or recompute"
                )
            if method.needs_forward_derivatives and training.precision != "float32":
                raise ValueError(
                    f"training.precision is {training.precision!r}, and torch does not cast in forward mode, which "
                    f"{method.arm} asks for; set method.engine=store or recompute"
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

    def arms(self) -> dict[str, MethodSettings]:
        """The methods to train, by name, in order."""
        return {method.arm: method for method in self._methods()}

    def _methods(self) -> list[MethodSettings]:
        return [*self.controls, self.method]

    def import_paths(self) -> list[str]:
        """Of all parts that the user brings."""
        return sorted(set(_import_paths(self.model_dump(mode="json"))))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process has to find the user's modules before it can take what is made of their classes."""
        return _arrived, (directories(self.import_paths()), pickle.dumps(dict(self)), self.model_fields_set)

    def to_yaml(self) -> str:
        return yaml_file.dump(self.model_dump(mode="json"))

    def flat(self) -> dict[str, Any]:
        """Dotted keys and values, for tracking."""
        return _flatten(self.model_dump(mode="json"))


def _arrived(places: Sequence[str], fields: bytes, given: set[str]) -> ExperimentConfig:
    look_in(places)
    return ExperimentConfig.model_construct(given, **pickle.loads(fields))


def load(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> ExperimentConfig:
    """The experiment of a YAML file, with `key.sub=value` overrides on top.

    Args:
        settings: values by dotted key that replace all others, without a word.
        source: where `settings` come from, for messages.

    Raises:
        UserError: if a file, a key or a value is wrong; the message names it and says what to do.
    """
    file = Settings.from_file(path)
    typed = file.with_settings(parsed(overrides), place=COMMAND_LINE)
    place = COMMAND_LINE if source is None else f"in {source}"
    return validated(ExperimentConfig, file, typed, typed.with_settings(settings or {}, place=place))


def validate(tree: Mapping[str, Any], *, source: str) -> ExperimentConfig:
    """As `load`, from nested mappings."""
    return validated(ExperimentConfig, Settings(dict(tree), f"in {source}"))


def validated(record: type[AnyRecord], *layers: Settings) -> AnyRecord:
    """Any record from settings; what is wrong is said in one sentence, as a `UserError`.

    Args:
        layers: each holds the ones before and what was added to them; the last one is what is meant. Where settings
            contradict each other, those are to blame that were added first to something that was all right.
    """
    try:
        return record.model_validate(layers[-1].tree)
    except ValidationError as error:
        to_blame = next((layer.place for layer in layers[:-1] if not _is_valid(record, layer)), layers[-1].place)
        raise UserError(sentence(error, record, layers[-1], contradiction=to_blame)) from None


def read_tree(path: Path) -> dict[str, Any]:
    """The nested mappings of a YAML file, on top of what it extends.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    return Settings.from_file(path).tree


def _is_valid(record: type[BaseModel], settings: Settings) -> bool:
    try:
        record.model_validate(settings.tree)
    except ValidationError:
        return False
    return True


def _import_paths(tree: Any) -> Iterator[str]:
    """Of every section that has one for a name."""
    if isinstance(tree, Mapping) and is_import_path(tree.get("name")):
        yield tree["name"]
    for part in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from _import_paths(part)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
