"""Settings that are the keyword arguments of a function: of a student's, of a task of one's own."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, create_model

from l2t_ray.import_path import imported, is_import_path
from l2t_ray.settings.record import Positive, Real, Record, Text, Whole
from l2t_ray.students.sizes import Ratio

Number = Annotated[Whole, Field(ge=0, le=1_000_000)]
"""A whole number among the arguments: a size or a count."""


class Maker(NamedTuple):
    """What all functions of a kind have in common.

    Attributes:
        makes: what is made, for messages: a student, a task.
        result: likewise, as Python has it: a module.
        known: functions by name.
        from_data: arguments that follow from the data, and are no settings.
    """

    makes: str
    result: str
    known: Mapping[str, Callable[..., Any]]
    from_data: tuple[str, ...]


class MadeSettings(Record):
    """What is made by a function: its name or import path, and the function's keyword arguments."""

    model_config = ConfigDict(protected_namespaces=(), validate_default=True)

    maker: ClassVar[Maker]

    name: str

    def options(self) -> dict[str, Any]:
        """The settings that it is made with."""
        common = _kind_of(type(self)).model_fields
        return {name: getattr(self, name) for name in type(self).model_fields if name not in common}

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is made while the program runs, so that another process has to make it again."""
        return _again, (_kind_of(type(self)), dict(self))


def _kind_of(record: type[MadeSettings]) -> type[MadeSettings]:
    """The class that has what all of the kind have."""
    return next(base for base in record.__mro__ if issubclass(base, MadeSettings) and "maker" in vars(base))


AnyMade = TypeVar("AnyMade", bound=MadeSettings)


def _again(kind: type[MadeSettings], settings: dict[str, Any]) -> MadeSettings:
    return record_of(kind, settings["name"]).model_validate(settings)


def factory(kind: type[MadeSettings], name: str) -> Callable[..., Any]:
    """The function that makes it, by its name or by its import path.

    Raises:
        ValueError: if it cannot be imported, or is none; in one sentence without a full stop.
    """
    if not is_import_path(name):
        return kind.maker.known[name]
    found = imported(name)
    if not callable(found):
        raise ValueError(
            f"{kind.maker.makes} {name!r} must be a function that makes {kind.maker.result}, and is of type "
            f"{type(found).__name__}"
        )
    return found


@cache
def record_of(kind: type[AnyMade], name: str) -> type[AnyMade]:
    """The settings of what a function makes, from its signature.

    Raises:
        ValueError: as `factory`; or if its arguments cannot be settings.
    """
    make = factory(kind, name)
    plain = make.func if isinstance(make, partial) else make
    try:
        arguments = inspect.signature(make).parameters
        hints = get_type_hints(plain.__init__ if isinstance(plain, type) else plain, include_extras=True)
        fields: dict[str, Any] = {
            key: _field(kind, key, argument, hints)
            for key, argument in arguments.items()
            if key not in kind.maker.from_data and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        }
        fixed: Any = (str, ...) if is_import_path(name) else (Literal[name], name)  # pyright: ignore
        title = f"{kind.maker.makes.capitalize()}_{name}"
        return create_model(title, __base__=kind, __doc__=inspect.getdoc(plain), name=fixed, **fields)
    except Exception as error:  # pydantic has many for a name or a type that it cannot take
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{kind.maker.makes} {name!r} cannot be made from a configuration: {reason}") from error


def own_made(kind: type[AnyMade], section: Any) -> type[AnyMade] | None:
    """The settings of what is made by the function whose import path is the `name` of a section; None: it has another
    name, or none.

    Raises:
        ValueError: as `record_of`.
    """
    name = section.get("name") if isinstance(section, Mapping) else None
    return record_of(kind, name) if is_import_path(name) else None


def takes(make: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named values that the function has arguments for."""
    arguments = inspect.signature(make).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return dict(names)
    return {name: value for name, value in names.items() if name in arguments}


def required(make: Callable[..., Any]) -> list[str]:
    """The arguments that have no default."""
    return [name for name, argument in inspect.signature(make).parameters.items() if argument.default is argument.empty]


def _field(
    kind: type[MadeSettings], key: str, argument: inspect.Parameter, hints: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Type and default of a setting, as pydantic takes them."""
    if argument.kind is argument.POSITIONAL_ONLY:
        raise ValueError(f"its argument {key} can only be given by its place")
    if key in kind.model_fields or hasattr(kind, key):
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
