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
        self._is_stopping = False

    def post(self, rows: list[Row]) -> bool:
        """Whether the run is to stop."""
        self._rows.extend(rows)
        return self._is_stopping

    def note(self, text: str) -> None:
        self._notes.append(text)

    def take(self, is_stopping: bool) -> tuple[list[Row], list[str]]:
        """The driver says each time whether it wants the run to stop: a board that was restarted has forgotten."""
        self._is_stopping = is_stopping
        rows, notes = self._rows, self._notes
        self._rows, self._notes = [], []
        return rows, notes
