"""The actor between workers and driver: finished rounds, and what the driver should say.

It imports nothing heavy, so that its process starts at once.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

MetricsRow = Mapping[str, Any]
RECENT_S = 30.0
"""Workers whose sum failed for the same reason say so within this time of each other."""


class Board:
    """Rank 0 posts finished rounds, whoever notices something posts a note; the driver takes them."""

    def __init__(self) -> None:
        self._rows: list[MetricsRow] = []
        self._notes: list[str] = []
        self._is_stopping = False
        self._waited_at: dict[int, float] = {}

    def post(self, rows: list[MetricsRow]) -> bool:
        """Whether the run is to stop."""
        self._rows.extend(rows)
        return self._is_stopping

    def note(self, text: str) -> None:
        self._notes.append(text)

    def take(self, is_stopping: bool) -> tuple[list[MetricsRow], list[str]]:
        """The driver says each time whether it wants the run to stop: a board that was restarted has forgotten."""
        self._is_stopping = is_stopping
        rows, notes = self._rows, self._notes
        self._rows, self._notes = [], []
        return rows, notes

    def waited(self, rank: int) -> None:
        """This worker is alive, and waited in vain for others."""
        self._waited_at[rank] = time.monotonic()

    def silent(self, num_workers: int) -> list[int]:
        """The workers that have not said so lately."""
        now = time.monotonic()
        return [rank for rank in range(num_workers) if now - self._waited_at.get(rank, -math.inf) > RECENT_S]
