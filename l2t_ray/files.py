"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PRIVATE = 0o600
"""Mode of a file that others than its owner may not read: it may hold what is nobody's business."""
PRIVATE_DIRECTORY = 0o700
PUBLIC = 0o666


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a place beside `path` to write to; what is there in the end is put in place of `path` in one step.

    If the block fails, what was there before stays, and nothing is left behind. The place is unique: processes that
    write the same file at once do not write into each other's.

    Raises:
        OSError: if it cannot be put in place.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, mode: int = PRIVATE) -> None:
    """Writes a file as `replaced` does, and waits until it is on the disk.

    Args:
        mode: its permissions, less what the umask takes away.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    with replaced(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file or directory entry is on the disk: a rename must not overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
