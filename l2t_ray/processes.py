"""Whether a process of this machine is still there."""

import os
from typing import Any


def is_alive(pid: Any) -> bool:
    """Whether a process has this number, as it may have been read from a file: what is no number is none."""
    try:
        os.kill(int(pid), 0)
    except (TypeError, ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
