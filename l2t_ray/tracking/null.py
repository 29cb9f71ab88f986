"""A tracker that writes nothing: for tests, and for runs that keep only their own directory."""

from collections.abc import Mapping, Sequence
from typing import Any


class NullTracker:
    """Accepts everything a `Tracker` accepts and forgets it."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Forgets the parameters."""

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Forgets the rows."""

    def log_artifacts(self, *paths: str) -> None:
        """Forgets the files."""

    def finish(self, status: str) -> None:
        """Does nothing: there is nothing to close."""
