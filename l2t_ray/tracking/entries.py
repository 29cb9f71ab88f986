"""What a tracker has to send: rows and parameters, in the form that MLflow takes; and the journal that keeps rows."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from l2t_ray.masking import masked

_MAX_PARAM_LENGTH = 500  # stores take 500 (older servers) to 6000 characters; the shortest limit serves all
_MAX_KEY_LENGTH = 250
_ROW_IDENTITY = frozenset({"arm", "round"})


class RoundEntry(NamedTuple):
    """The numbers of one round of an arm."""

    arm: str
    round: int
    time_ms: int
    values: dict[str, float]

    @classmethod
    def of(cls, row: Mapping[str, Any], time_ms: int) -> "RoundEntry":
        """A row of the metrics table, without what is no number and NaN."""
        values = {str(k): float(v) for k, v in row.items() if k not in _ROW_IDENTITY and _is_number(v)}
        return cls(_key(row.get("arm") or ""), int(row["round"]), time_ms, values)

    @property
    def identity(self) -> tuple[str, int]:
        return self.arm, self.round

    @property
    def num_metrics(self) -> int:
        return len(self.values) + 1

    def metrics(self, method: str) -> Iterator[tuple[str, float]]:
        """Names and values; those of the arm that the run is about have plain names."""
        prefix = "" if self.arm in ("", method) else f"{self.arm}/"
        for name, value in self.values.items():
            yield _key(prefix + name), value
        yield _key(prefix + "round"), float(self.round)


class Params(NamedTuple):
    """Parameters by dotted key, as text without credentials."""

    values: dict[str, str]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Params":
        return cls({_key(k): _shorten(masked(str(v))) for k, v in _flatten(params)})


def read_journal(path: Path) -> list[RoundEntry]:
    """The rows of a journal, one a line; none if there is no journal."""
    rows = []
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError, TypeError):  # the last line may be torn by a kill
                rows.append(RoundEntry(**json.loads(line)))
    return rows


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key(name: str) -> str:
    """The name with what MLflow refuses in keys replaced by `_`."""
    return re.sub(r"[^\w.\- :/]", "_", name)[:_MAX_KEY_LENGTH]


def _shorten(value: str) -> str:
    return value if len(value) <= _MAX_PARAM_LENGTH else value[: _MAX_PARAM_LENGTH - 3] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not math.isnan(value)
