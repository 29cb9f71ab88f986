"""The rows of a run on disk: a file that grows by the new ones, instead of one that every checkpoint writes anew.

All checkpoints of a run have the same file, each by a name (a hard link) in its own directory, and a `Mark`: the place
where its rows end and a checksum of all before. What follows belongs to a later checkpoint, or to one that was never
completed, and is cut off before more is added. Since damage would meet all of them, there are two such files: a damaged
one is noticed, and written anew from what the other one has.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2t_ray.files import PRIVATE, replaced

NAMES: tuple[str, ...] = ("rows.jsonl", "rows.copy.jsonl")


class Mark(NamedTuple):
    """Where the rows of a checkpoint end: how many they are, their length in the file, and their checksum."""

    count: int
    size: int
    sha256: str


EMPTY = Mark(0, 0, hashlib.sha256().hexdigest())


class RowsFile:
    """The rows of one run, read from one checkpoint and appended to in the next ones."""

    def __init__(self) -> None:
        self._mark, self._digest = EMPTY, hashlib.sha256()
        self._directory = Path()  # of the checkpoint that was read or written last
        self._sound: set[str] = set()
        """The files in it that are known to hold all rows up to the mark."""

    @property
    def mark(self) -> Mark:
        """After the rows that were read or appended last."""
        return self._mark

    def read(self, checkpoint: Path, mark: Mark) -> list[dict[str, Any]]:
        """The rows of a checkpoint, after which the next ones are appended.

        Raises:
            ValueError: if neither file has them as they were written.
        """
        content = b""
        sound: set[str] = set()
        for name in NAMES:
            found = _beginning(checkpoint / name, mark.size)
            if len(found) == mark.size and hashlib.sha256(found).hexdigest() == mark.sha256:
                content = found
                sound.add(name)
        if not sound:
            raise ValueError(f"{NAMES[0]} does not match its checksum")
        self._mark, self._digest = mark, hashlib.sha256(content)
        self._directory, self._sound = checkpoint, sound
        return [json.loads(line) for line in content.splitlines()]

    def append(self, rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> Mark:
        """Writes the rows of a checkpoint: of a file that has those before, the new ones alone.

        Args:
            rows: all of them, from the first round on.
            checkpoint: its directory, which has none yet.

        Returns:
            The mark after them.

        Raises:
            OSError: if they cannot be written.
        """
        if len(rows) < self._mark.count:  # a checkpoint from before
            self._mark, self._digest, self._sound = EMPTY, hashlib.sha256(), set()
        added = _encoded(rows[self._mark.count :])
        for name in NAMES:
            old, new = self._directory / name, checkpoint / name
            if name in self._sound and _size(old) >= self._mark.size:
                _link(old, new)
                _write(new, self._mark.size, added)
            else:
                _write(new, 0, _encoded(rows))
        self._digest.update(added)
        self._mark = Mark(len(rows), self._mark.size + len(added), self._digest.hexdigest())
        self._directory, self._sound = checkpoint, set(NAMES)
        return self._mark

    def moved(self, checkpoint: Path) -> None:
        """The checkpoint that was written last has another place now."""
        self._directory = checkpoint

    def bytes_of(self, begin: int, end: int) -> bytes:
        """A piece of what was read or appended last, to be copied elsewhere."""
        return _beginning(self._directory / min(self._sound), end)[begin:]


def put(checkpoint: Path, content: bytes) -> None:
    """Gives a checkpoint its rows from elsewhere."""
    for name in NAMES:
        with replaced(checkpoint / name) as temporary:
            _write(temporary, 0, content)


def _link(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError:  # not every file system has hard links
        shutil.copyfile(old, new)


def _encoded(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(dict(row)) + "\n" for row in rows).encode()


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # somebody has taken it away
        return -1


def _write(path: Path, after: int, content: bytes) -> None:
    """The content in place of all that the file has after its first bytes, on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE)
    try:
        os.ftruncate(descriptor, after)
        os.lseek(descriptor, after, os.SEEK_SET)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
