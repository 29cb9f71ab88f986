"""YAML as a configuration has it: plain values, read without trusting the file.

What is read stays in proportion to the file (aliases unfold to a bounded number of values), nothing but a regular file
is opened, no key may stand twice, and tags, which could ask for any Python object, are refused. Numbers are those of
YAML 1.2: `1e-3` is one, and neither `010` (eight in YAML 1.1) nor `1:30` (ninety) means something else than it looks.
What is not finite is no number of a configuration: `.nan`, `.inf` and `1e999` are text.
"""

import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError

from l2t_ray.interfaces import UserError

LARGEST_FILE = 200_000
MOST_VALUES = 20_000
DEEPEST = 40

KeyPath = tuple[str, ...]
"""The keys that lead to a value; positions in a list are keys as well."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]{1,30}(_[0-9]{3}){0,9}$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,2})?$")
_BOOL = re.compile(r"(yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NULL = re.compile(r"(~|null|Null|NULL|)$")
_SCALARS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() in ("yes", "true", "on"),
    "int": int,
    "float": float,
}


class _Plain:
    """Scalars become what they look like, and nothing else is looked for."""

    yaml_implicit_resolvers: ClassVar[dict[str | None, list]] = {}


for _name, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("yYnNtTfFoO")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"<<$"), ["<"]),
):
    for _character in _first:
        _Plain.yaml_implicit_resolvers.setdefault(_character, []).append((_TAG + _name, _pattern))


class _Loader(_Plain, yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ComposerError(
                None, None, f"could not determine a constructor for the tag {event.tag!r}", event.start_mark
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(_Plain, yaml.SafeDumper):
    """Quotes what `_Loader` would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """The value in a file, and the line on which each key of it stands.

    Raises:
        UserError: if the file cannot be read or is no plain YAML.
    """
    return parse(_text_of(path), source=str(path))


def parse(text: str, *, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """As `read`, from text; `source` is what messages call it."""
    try:
        node = _Loader(text).get_single_node()
        unfolded = _Unfolded()
        return (None if node is None else unfolded.value(node, ())), unfolded.lines
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_reason(error)}.") from None


def is_plain_text(text: str) -> bool:
    """Whether the text, with all that is in it, is what YAML would call text, but for comments."""
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError:
        return False
    return node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == f"{_TAG}str")


def dump(tree: object) -> str:
    """YAML that `parse` reads back as the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Unfolded:
    """Plain values from nodes, aliases unfolded as far as that stays small."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._number = 0

    def value(self, node: yaml.Node, place: KeyPath) -> Any:
        self._number += 1
        if self._number > MOST_VALUES:
            raise _error(node, f"its aliases unfold to more than {MOST_VALUES:,} values")
        if len(place) > DEEPEST:
            raise _error(node, f"its aliases unfold more than {DEEPEST} deep")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, (*place, str(i))) for i, entry in enumerate(node.value)]
        return _SCALARS.get(node.tag.removeprefix(_TAG), str)(node.value)

    def _mapping(self, node: yaml.MappingNode, place: KeyPath) -> dict[str, Any]:
        own, merged = {}, {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(key_node, "a key must be a word, not a list or a mapping")
            if key_node.tag == f"{_TAG}merge":
                merged |= self._merged(value_node, place)
                continue
            key = str(key_node.value)
            if key in own:
                raise _error(key_node, f"the key {key!r} stands twice in the same section")
            self.lines[(*place, key)] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, (*place, key))
        return merged | own

    def _merged(self, node: yaml.Node, place: KeyPath) -> dict[str, Any]:
        """What `<<` brings in: a mapping, or several, of which the first to have a key decides."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in reversed(parts):
            if not isinstance(part, yaml.MappingNode):
                raise _error(part, "<< takes a mapping or a list of mappings")
            result |= self.value(part, (*place, "<<"))
        return result


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):  # the reader's: characters that no text has
        return " ".join(str(error).split(" in ")[0].split())
    mark = error.problem_mark or error.context_mark
    reason = " ".join(f"{error.problem or error.context}".split())
    return reason if mark is None else f"{reason} (line {mark.line + 1}, column {mark.column + 1})"


def _text_of(path: Path) -> str:
    """
    Raises:
        UserError: if it is no text file of a configuration's size.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise UserError(f"cannot read the configuration {path}: it is {kind}; give a YAML file.")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing file.") from None
    except ValueError:  # a NUL in the name
        raise UserError(f"cannot read the configuration {str(path)!r}: that is no file name.") from None
    if len(data) > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE:,} bytes, which no configuration is; give a YAML file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8; give a YAML file.") from None
