"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from pathlib import Path

PRIVATE = 0o600
"""Mode of a file that others than its owner may not read: it may hold what is nobody's business."""
PRIVATE_DIRECTORY = 0o700
PUBLIC = 0o666


def write_whole(path: Path, text: str, *, mode: int = PRIVATE) -> None:
    """Writes a file under a temporary name, flushes it, and renames it.

    Args:
        mode: its permissions, less what the umask takes away.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file or directory entry is on the disk: a rename must not overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
