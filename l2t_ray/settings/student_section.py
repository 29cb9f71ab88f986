"""The section `student`: each student's settings are the keyword arguments of the function that makes it."""

import inspect
from collections.abc import Mapping
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, create_model

from l2t_ray.import_path import imported, is_import_path
from l2t_ray.settings.record import Positive, Real, Record, Text, Whole
from l2t_ray.students.known import STUDENTS, MakeStudent
from l2t_ray.students.sizes import Ratio

SHAPE = ("num_classes", "in_channels", "image_size")
"""Arguments that follow from the data."""

Number = Annotated[Whole, Field(ge=0, le=1_000_000)]
"""A whole number among a student's settings: a size or a count."""


class StudentSettings(Record):
    """What every student has. The rest is its own."""

    model_config = ConfigDict(protected_namespaces=(), validate_default=True)

    name: str
    sync_batchnorm: bool = False
    """Batch statistics of the global minibatch instead of each worker's own slice."""

    def options(self) -> dict[str, Any]:
        """The settings that the student is made with."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in _COMMON}

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is made while the program runs, so that another process has to make it again."""
        return _again, (dict(self),)


def _again(settings: dict[str, Any]) -> StudentSettings:
    return student_record(settings["name"]).model_validate(settings)


_COMMON = frozenset(StudentSettings.model_fields)


def factory(name: str) -> MakeStudent:
    """The function that makes a student, by its name or by its import path.

    Raises:
        ValueError: if it cannot be imported, or is none; in one sentence without a full stop.
    """
    if not is_import_path(name):
        return STUDENTS[name]
    found = imported(name)
    if not callable(found):
        raise ValueError(f"student {name!r} must be a function that makes a module, and is of type {_type(found)}")
    return found


@cache
def student_record(name: str) -> type[StudentSettings]:
    """The settings of a student, from the signature of the function that makes it.

    Raises:
        ValueError: as `factory`; or if its arguments cannot be settings.
    """
    make = factory(name)
    plain = make.func if isinstance(make, partial) else make
    try:
        arguments = inspect.signature(make).parameters
        hints = get_type_hints(plain.__init__ if isinstance(plain, type) else plain, include_extras=True)
        takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        lacking = [key for key in SHAPE if key not in arguments and not takes_all]
        if lacking:
            raise ValueError(f"it must take {', '.join(SHAPE)} by name, and lacks {', '.join(lacking)}")
        fields: dict[str, Any] = {
            key: _field(key, argument, hints)
            for key, argument in arguments.items()
            if key not in SHAPE and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        }
        fixed: Any = (str, ...) if is_import_path(name) else (Literal[name], name)  # pyright: ignore
        return create_model(
            f"Student_{name}", __base__=StudentSettings, __doc__=inspect.getdoc(plain), name=fixed, **fields
        )
    except Exception as error:  # pydantic has many for a name or a type that it cannot take
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"student {name!r} cannot be made from a configuration: {reason}") from error


def settings_of(name: Any) -> frozenset[str]:
    """The keys of a student's section; of a student that is not known, those that all have."""
    try:
        return frozenset(student_record(name).model_fields)
    except (ValueError, KeyError, TypeError):  # which is said when the section is read
        return _COMMON


def own_student(section: Any) -> type[StudentSettings] | None:
    """The settings of the student whose import path is the `name` of a section; None: it has another name, or none.

    Raises:
        ValueError: as `student_record`.
    """
    name = section.get("name") if isinstance(section, Mapping) else None
    return student_record(name) if is_import_path(name) else None


def _field(key: str, argument: inspect.Parameter, hints: Mapping[str, Any]) -> tuple[Any, Any]:
    """Type and default of a setting, as pydantic takes them."""
    if argument.kind is argument.POSITIONAL_ONLY:
        raise ValueError(f"its argument {key} can only be given by its place")
    if key in _COMMON or hasattr(StudentSettings, key):
        raise ValueError(f"its argument {key} has a name that is taken; call it something else")
    has_default = argument.default is not argument.empty
    if key not in hints and (not has_default or argument.default is None):
        raise ValueError(f"its argument {key} needs a type, such as {key}: int")
    hint = hints.get(key, type(argument.default))
    return _checked(hint), argument.default if has_default else ...


def _checked(hint: Any) -> Any:
    """The type with the checks that all settings of the kind have."""
    if hint in _CHECKED:
        return _CHECKED[hint]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_checked(part) for part in get_args(hint))]  # noqa: UP007 (a value, not an annotation)
    if get_origin(hint) is tuple:
        return tuple[tuple(part if part is ... else _checked(part) for part in get_args(hint))]
    return hint


_CHECKED: Mapping[Any, Any] = {int: Number, float: Real, Ratio: Positive, str: Text}


def _type(value: object) -> str:
    return type(value).__name__
