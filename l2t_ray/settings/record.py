"""What all records of a configuration have in common, and the types of their numbers.

Every number of a configuration has one of the types below: it is finite, of the right kind, in a range that makes
sense, and small enough that nothing overflows or fills the memory before anybody is told.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from l2t_ray.import_path import imported, is_import_path

_WHOLE = re.compile(r"[-+]?\d{1,30}")
_REAL = re.compile(r"[-+]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,4})?")
_SMALLEST, _LARGEST = 1e-37, 1e37
"""What single precision holds, in which everything is trained."""


def _real(value: Any) -> float:
    number = _number(value)
    if not math.isfinite(number):
        raise PydanticCustomError("number", "must be a finite number")
    if number and not _SMALLEST <= abs(number) <= _LARGEST:
        raise PydanticCustomError("number", "must be a number that single precision holds, from 1e-37 to 1e37 in size")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    number = _number(value)
    if not number.is_integer():
        raise PydanticCustomError("number", "must be a whole number")
    return int(number)


def _number(value: Any) -> float:
    """YAML takes yes, on and true for truth values, which Python would take for 1; and a number in quotes for text."""
    if isinstance(value, str) and _REAL.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", "must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _path(value: Path) -> Path:
    if "\0" in str(value):
        raise PydanticCustomError("path", "must be a path, which has no NUL character")
    if not value.parts:
        raise PydanticCustomError("path", "must be a path; write . for the current directory")
    try:
        value.expanduser()
    except RuntimeError:
        raise PydanticCustomError("path", "begins with the home of a user who is not known here") from None
    return value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("text", "must be text without NUL characters")
    return value


Real = Annotated[float, BeforeValidator(_real)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Seconds = Annotated[Real, Field(gt=0, le=1e7)]
"""A time to wait: at most 115 days."""

Whole = Annotated[int, BeforeValidator(_whole)]
Natural = Annotated[Whole, Field(ge=0, le=2**63 - 1)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
Steps = Annotated[Whole, Field(ge=1, le=100_000)]
"""Things that take memory until the last one is done: the steps of a round."""
Width = Annotated[Whole, Field(ge=1, le=1024)]
"""Units of a network that is small by design."""

FilePath = Annotated[Path, AfterValidator(_path)]
Text = Annotated[str, AfterValidator(_without_nul), Field(max_length=4096)]


class Record(BaseModel):
    """Settings that belong together. They do not change; keys that are not known are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what they are called now."""
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By key, values of earlier versions, and what they are called now."""
    constants: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions that are settings no more, and the constants of the record's module that they are."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


class PathNamed(Record):
    """A variant of a section, told from the others by its name: a class without one is named by its import path."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_ones_own_is_named_by_its_import_path(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "name" not in value and cls.model_fields["name"].is_required():
            return {"name": f"{cls.__module__}:{cls.__qualname__}", **value}
        return value


def named(default: str) -> BeforeValidator:
    """Lets a variant be written as its bare name, and gives it the default name where it has none."""

    def name_it(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "name" not in value:
            return {"name": default, **value}
        return value

    return BeforeValidator(name_it)


def own_record(section: Any, kind: type[AnyRecord]) -> type[AnyRecord] | None:
    """The class of the user's own whose import path is the `name` of a section; None: it has another name, or none.

    Raises:
        ValueError: as `imported`; or if it is something else than a subclass of `kind`, or has a name of its own.
    """
    path = section.get("name") if isinstance(section, Mapping) else None
    if not is_import_path(path):
        return None
    found = imported(path)
    if not (isinstance(found, type) and issubclass(found, kind) and found is not kind):
        raise ValueError(f"{path!r} must be a subclass of {kind.__module__}.{kind.__name__}, and is {_kind(found)}")
    if not found.model_fields["name"].is_required():
        raise ValueError(
            f"{path!r} is called {found.model_fields['name'].default!r}; write that if it is one of l2t_ray's, or "
            "leave the field `name` out of a class of your own"
        )
    return found


def one_of(known: tuple[type[AnyRecord], ...], kind: type[AnyRecord]) -> Any:
    """The type of a section that holds one of these variants, told apart by `name`, or one of the user's own: a
    subclass of `kind`, by its import path or as an object."""

    def one_of_ones_own(value: Any, by_name: Callable[[Any], Any]) -> Any:
        if isinstance(value, kind) and type(value) not in known:
            return value
        own = own_record(value, kind)
        return by_name(value) if own is None else own.model_validate(value)

    union: Any = Union[known]  # noqa: UP007 (a value, not an annotation)
    whole: Any = SerializeAsAny  # which pydantic shows type checkers as an annotation
    return Annotated[union, Field(discriminator="name"), WrapValidator(one_of_ones_own), whole()]


def _kind(value: Any) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of type {type(value).__name__}"
