"""Says in one line when workers are lost and training goes back to the last checkpoint."""

from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback


class NoteRestarts(UserCallback):
    """Runs beside Ray Train's controller, which itself restarts the workers without a word."""

    def __init__(self, board: Any, max_failures: int):
        self._board, self._max_failures, self._num_failures = board, max_failures, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        del run_context
        self._num_failures += 1
        if self._num_failures > self._max_failures:
            return  # the run ends, and its error says why
        self._board.note.remote(
            f"lost {describe(worker_exceptions)}; going on from the last checkpoint "
            f"(failure {self._num_failures} of ray.max_failures={self._max_failures})"
        )


def describe(worker_exceptions: Mapping[int, Exception]) -> str:
    """Who failed and why, one line: the last line of an error says what happened, the ones before it where."""
    return "; ".join(f"worker {rank} ({_reason(error)})" for rank, error in sorted(worker_exceptions.items()))


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
