"""Settings on their way to a record: from files that extend one another, from the command line, and who said what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import Repr
from typing import Any, NamedTuple

from l2t_ray.interfaces import UserError
from l2t_ray.methods.known_losses import DEFAULT_LOSS
from l2t_ray.methods.l2t_dln import DEFAULT_TEACHER
from l2t_ray.methods.registry import DEFAULT_METHOD
from l2t_ray.settings import yaml_file
from l2t_ray.settings.student_section import settings_of
from l2t_ray.settings.yaml_file import KeyPath
from l2t_ray.students.known import DEFAULT_STUDENT

VARIANTS: dict[KeyPath, str] = {
    ("method",): DEFAULT_METHOD.model_fields["name"].default,
    ("method", "teacher"): DEFAULT_TEACHER,
    ("method", "loss"): DEFAULT_LOSS.model_fields["name"].default,
    ("student",): DEFAULT_STUDENT,
    ("task",): "",
}
"""Sections that hold one of several variants, told apart by their `name`; and the variant meant without one (a task
always has a name)."""

COMMAND_LINE = "on the command line"
LONGEST_CHAIN = 20


@dataclass(frozen=True)
class Settings:
    """Nested mappings, and for each key where the user wrote it."""

    tree: dict[str, Any]
    place: str
    """Where the last of them were written, such as `in configs/x.yaml`."""
    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    """`in configs/x.yaml, line 3`, or `on the command line`."""

    @classmethod
    def from_file(cls, path: Path) -> "Settings":
        """What a YAML file says, on top of what it extends.

        Raises:
            UserError: if there is no such file, or it holds something else.
        """
        return _read(path, seen=())

    def with_settings(self, settings: Mapping[str, Any], *, place: str) -> "Settings":
        """With values by dotted key on top, one after another.

        Raises:
            UserError: if a key is below something that is no section, but a list or a single value.
        """
        if not settings:
            return self
        tree, origins = self.tree, dict(self.origins)
        for key, value in settings.items():
            keys = tuple(key.split("."))
            if (found := _no_section(tree, keys[:-1])) is not None:
                above = ".".join(found.keys)
                origin = Settings(tree, self.place, origins).origin(found.keys)
                raise UserError(
                    f"{key} {place} is below {above}, which is {_SHOWN.repr(found.value)} {origin} and has no keys; "
                    f"write {above} as a whole."
                )
            patch = value
            for part in reversed(keys):
                patch = {part: patch}
            tree = _merged(tree, patch)
            origins = {there: origin for there, origin in origins.items() if there[: len(keys)] != keys}
            origins[keys] = place
        return Settings(tree, place, origins)

    def origin(self, place: Sequence[str]) -> str:
        """Where the value at `place` was written."""
        for length in range(len(place), 0, -1):
            if (found := self.origins.get(tuple(place[:length]))) is not None:
                return found
        return self.place


def parsed(overrides: Iterable[str]) -> dict[str, Any]:
    """Values by dotted key from `key.sub=value`s as people type them.

    Raises:
        UserError: if one is malformed.
    """
    settings: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")) or any(part != part.strip() for part in key.split(".")):
            raise UserError(f"override {override!r} is not of the form key.sub=value.")
        if not text.strip():
            raise UserError(f"override {override!r} has no value; give one, or {key}=null for none at all.")
        settings.pop(key, None)  # the last one wins, and keeps its place in the order
        settings[key] = _value(text, override)
    return settings


def _value(text: str, override: str) -> Any:
    if yaml_file.is_plain_text(text):
        return text.strip()  # as it stands: a # in a path begins no comment here
    try:
        return yaml_file.parse(text, source="")[0]
    except UserError as error:
        reason = str(error).strip().rstrip(".")
        raise UserError(f"the value of override {override!r} {reason}; quote it.") from None


def _read(path: Path, seen: tuple[Path, ...]) -> Settings:
    tree, lines = yaml_file.read(path)
    own = path.resolve()
    if own in seen:
        raise UserError(f"{path} extends itself; remove one of its `extends` lines.")
    if len(seen) >= LONGEST_CHAIN:
        raise UserError(f"{path} is extended through more than {LONGEST_CHAIN} files; name one nearer to it.")
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, got a {_KINDS.get(type(tree), 'single value')}.")
    base = tree.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"extends in {path} must be the path of another configuration, got {base!r}.")
    origins = {place: f"in {path}, line {line}" for place, line in lines.items()}
    if base is None:
        return Settings(tree, f"in {path}", origins)
    below = _read(path.parent / base, (*seen, own))
    return Settings(_merged(below.tree, tree), f"in {path}", {**below.origins, **origins})


_KINDS = {list: "list", str: "text"}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], above: KeyPath = ()) -> dict[str, Any]:
    """`over` on top of `base`. Another variant of a section takes its place: the old one's options do not apply. (Those
    of a student do, as far as the other one has them too.)

    Args:
        above: keys of the section that both are.
    """
    result = dict(base)
    for key, value in over.items():
        place = (*above, key)
        old, new = _spelt_out(place, result.get(key)), _spelt_out(place, value)
        if isinstance(old, dict) and isinstance(new, dict):
            default = VARIANTS.get(place)
            old_name = old.get("name", default)
            is_other = default is not None and new.get("name", old_name) != old_name
            if is_other:
                kept = settings_of(new["name"]) - {"name"} if place == ("student",) else frozenset()
                old = {option: value for option, value in old.items() if option in kept}
            result[key] = _merged(old, new, place)
        else:
            result[key] = new
    return result


class _NoSection(NamedTuple):
    keys: KeyPath
    value: Any


def _no_section(tree: Mapping[str, Any], keys: Sequence[str]) -> _NoSection | None:
    """The first of nested keys that has a value without keys of its own; None: all are sections, or are not set."""
    value: Any = tree
    for number, key in enumerate(keys, start=1):
        place = tuple(keys[:number])
        value = _spelt_out(place, value.get(key))
        if value is None:
            return None
        if not isinstance(value, Mapping):
            return _NoSection(place, value)
    return None


_SHOWN = Repr()
_SHOWN.maxstring = 60


def _spelt_out(place: KeyPath, value: Any) -> Any:
    """A variant may stand as its bare name."""
    return {"name": value} if place in VARIANTS and isinstance(value, str) else value
