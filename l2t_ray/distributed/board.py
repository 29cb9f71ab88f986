"""The actor between workers and driver: finished rounds, and what the driver should say.

It imports nothing heavy, so that its process starts at once.
"""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class Board:
    """Rank 0 posts finished rounds, whoever notices something posts a note; the driver takes them."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._notes: list[str] = []

    def post(self, rows: list[Row]) -> None:
        self._rows.extend(rows)

    def note(self, text: str) -> None:
        self._notes.append(text)

    def take(self) -> tuple[list[Row], list[str]]:
        rows, notes = self._rows, self._notes
        self._rows, self._notes = [], []
        return rows, notes
