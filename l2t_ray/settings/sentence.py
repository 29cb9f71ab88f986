"""What is wrong with a configuration, in one sentence."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from l2t_ray.settings.record import Record, own_record
from l2t_ray.settings.signature import own_made
from l2t_ray.settings.student_section import StudentSettings
from l2t_ray.settings.task_section import TaskSettings
from l2t_ray.settings.tree import Settings

LONGEST_VALUE = 80


def sentence(error: ValidationError, record: type[BaseModel], settings: Settings, *, contradiction: str) -> str:
    """The first problem, with its key, where it was written, and the nearest valid key for a misspelt one.

    Args:
        contradiction: where the settings were written that contradict others, if that is the problem.
    """
    first = error.errors()[0]
    keys = keys_of(first, settings.tree)
    key, origin, context = shown_key(keys), settings.origin(keys), first.get("ctx", {})
    if first["type"] == "value_error":  # it names its keys itself
        return f"{context['error']} ({contradiction if isinstance(first['input'], Mapping) else origin})."
    match first["type"]:
        case "extra_forbidden":
            section = record_at(record, [str(part) for part in first["loc"][:-1]], settings.tree)
            return _unknown(keys, section, origin)
        case "union_tag_invalid":
            origin = settings.origin([*keys, "name"])
            return f"{key}.name {origin} must be one of {context['expected_tags']}, got {value_text(context['tag'])}."
        case "missing" if isinstance(first["loc"][-1], int):
            return f"{key} {origin} has too few entries, got {value_text(first['input'])}."
        case "missing":
            lacking = shown_key([*keys, str(first["loc"][-1])])
            return f"{settings.place.removeprefix('in ')} lacks {lacking}, which must be given."
        case "model_type" | "model_attributes_type":
            found = record_at(record, [str(part) for part in first["loc"]], settings.tree)
            if found is not None:
                section = list(found.model_fields)
                value = value_text(first["input"], quotes=False) if isinstance(first["input"], str) else "VALUE"
                example = f"{key}.{section[0]}={value}"
                return f"{key} {origin} is a section with the keys {', '.join(section)}; set for instance {example}."
        case "literal_error" if new := _new_value(record, first, settings):
            return f"{key}={first['input']} {origin} is called {key}={new} now; write that."
    message = _IN_YAML.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    words = [other for other in error.errors()[1:] if other["type"] == "literal_error"]
    if words and keys_of(words[0], settings.tree) == keys and first["type"] in _IN_YAML:  # a word instead will do too
        message += f" or {words[0].get('ctx', {})['expected']}"
    return f"{key} {origin}: {message}, got {value_text(first['input'])}."


_IN_YAML = {
    "dict_type": "must hold keys and values",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text, in quotes where it looks like something else",
    "path_type": "must be a path, in quotes where it looks like something else",
}
"""pydantic's messages speak of Python where people wrote YAML."""


def _unknown(keys: Sequence[str], section: type[BaseModel] | None, origin: str) -> str:
    """What to say of a key that a section does not have, or has no more."""
    key, name = shown_key(keys), keys[-1]
    if section is not None and issubclass(section, Record):
        if name in section.renamed:
            return f"{key} {origin} is called {shown_key([*keys[:-1], section.renamed[name]])} now; write that."
        if name in section.constants:
            constant = f"{section.constants[name]} of {section.__module__}"
            return f"{key} {origin} is no setting any more but the constant {constant}; leave it out."
    fields = [] if section is None else list(section.model_fields)
    near = _one_level_below(name, section) or difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    meant = " or ".join(shown_key([*keys[:-1], one]) for one in near)
    hint = f"did you mean {meant}?" if near else f"valid: {', '.join(fields)}."
    return f"unknown key {key} {origin}; {hint}"


def _one_level_below(name: str, section: type[BaseModel] | None) -> list[str]:
    """The keys called so in the sections of this one, for who left the section out."""
    inner = {} if section is None else {key: field.annotation for key, field in section.model_fields.items()}
    return [
        f"{key}.{name}"
        for key, record in inner.items()
        if isinstance(record, type) and issubclass(record, BaseModel) and name in record.model_fields
    ]


def _new_value(record: type[BaseModel], error: ErrorDetails, settings: Settings) -> str | None:
    """What a value of an earlier version is called now."""
    *place, name = (str(part) for part in error["loc"])
    section = record_at(record, place, settings.tree)
    if section is None or not issubclass(section, Record):
        return None
    return section.renamed_values.get(name, {}).get(str(error["input"]))


def value_text(value: Any, *, quotes: bool = True) -> str:
    """A value on one line, shortened where it is long."""
    text = value if isinstance(value, str) and not quotes and value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def shown_key(keys: Sequence[str]) -> str:
    text = ".".join(keys) or "the configuration"
    return value_text(text, quotes=not text.isprintable())


def keys_of(error: ErrorDetails, tree: Any) -> list[str]:
    """The keys that the user wrote to get there: pydantic also names the variants it took on its way."""
    keys: list[str] = []
    value = tree
    for part in error["loc"]:
        if _has(value, part):
            value = value[part]
            keys.append(str(part))
    return keys


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def record_at(model: type[BaseModel], location: list[str], value: Any) -> type[BaseModel] | None:
    """The record at `location`; tags choose a variant of a union, numbers a place in a list.

    Args:
        value: the settings that were meant for `model`: they say which class of the user's own is at its place.
    """
    if not location:
        return model
    head, *rest = location
    inner = _at(value, head)
    if head not in model.model_fields:  # a key of a mapping of records
        return record_at(model, rest, inner)
    if rest and rest[0].isdigit():
        inner, rest = _at(inner, int(rest[0])), rest[1:]
    if (own := _own(head, inner)) is not None:
        return record_at(own, rest, inner)
    for candidate in _records(model.model_fields[head].annotation):
        is_tagged = bool(rest) and rest[0] in _tags(model)
        if is_tagged and candidate.model_fields["name"].default != rest[0]:
            continue
        return record_at(candidate, rest[1:] if is_tagged else rest, inner)
    return None


def _at(value: Any, part: str | int) -> Any:
    return value[part] if _has(value, part) else None


def _own(key: str, section: Any) -> type[Record] | None:
    """The record of a section that has an import path for a name."""
    kind = {"student": StudentSettings, "task": TaskSettings}.get(key)
    with suppress(ValueError):  # which is what there is to say then
        return own_record(section, Record) if kind is None else own_made(kind, section)
    return None


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
