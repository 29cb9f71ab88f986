"""The most memory that this process needed, between two moments."""

import re
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from its making on: on the CUDA device in use, or else of the whole process (Linux).

    Where the system cannot forget an earlier peak, that one counts; elsewhere than on Linux there is no figure.
    """

    def __init__(self) -> None:
        self._is_cuda = torch.cuda.is_available()
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            _CLEAR.write_text("5")  # man proc: forgets the highest resident set so far

    def megabytes(self) -> float | None:
        if self._is_cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        except OSError:
            return None
        return int(found[1]) / 1024 if found else None
