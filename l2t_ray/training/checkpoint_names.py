"""What checkpoints are called. A directory with another name is somebody's own, and is left alone."""

import re
from collections.abc import Iterable

_NAME = re.compile(r"(?P<rows>\d{7,})-(?P<arm>.+)-(?P<round>\d{6,})(?P<diverged>-diverged)?")


def checkpoint_name(*, num_rows: int, arm: str, round: int, is_diverged: bool) -> str:
    """By the rounds of all arms so far, then the arm in training, its finished rounds, and whether it was given up."""
    return f"{num_rows:07d}-{arm}-{round:06d}" + ("-diverged" if is_diverged else "")


def in_order(names: Iterable[str]) -> list[str]:
    """Those that are names of checkpoints, oldest first."""
    return sorted((name for name in names if _NAME.fullmatch(name)), key=_age)


def newer(names: Iterable[str], than: str) -> list[str]:
    """The names of checkpoints of a later moment."""
    return [name for name in in_order(names) if _age(name) > _age(than)]


def _age(name: str) -> tuple[int, bool, str]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match["rows"]), match["diverged"] is not None, name
