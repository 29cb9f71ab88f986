"""One process at a time prepares a set; the others wait, and say for whom."""

import contextlib
import fcntl
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from l2t_ray.interfaces import UserError

SAYS_AFTER = 3.0
"""Seconds of waiting until it is said who is waited for."""
GIVES_UP_AFTER = 1800.0
"""Seconds of waiting until it is given up: a large set takes its time to convert."""


@contextlib.contextmanager
def one_at_a_time(
    directory: Path,
    name: str,
    *,
    doing: str,
    says_after: float = SAYS_AFTER,
    gives_up_after: float = GIVES_UP_AFTER,
) -> Iterator[None]:
    """Holds the lock `name` while the block runs. Without a place for it, everybody goes on at once.

    Args:
        directory: a folder of this user's alone; made with mode 0700 where it is absent.
        name: of the file in it.
        doing: what the holder is doing, for messages, such as "converting cifar10".
        says_after: seconds until a warning names the holder.
        gives_up_after: seconds until waiting ends.

    Raises:
        UserError: if another process still holds the lock after `gives_up_after` seconds.
    """
    descriptor = _open(directory, name)
    if descriptor is None:
        yield
        return
    try:
        if _wait(descriptor, directory / name, doing, says_after, gives_up_after):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # lets the lock go, as the end of the process does


def _open(directory: Path, name: str) -> int | None:
    """The lock file, if it is one of this user's own: a name in a folder of others may be a trap set by them."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = directory.lstat()
        if folder.st_uid != os.getuid() or not stat.S_ISDIR(folder.st_mode) or folder.st_mode & 0o022:
            return None
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(directory / name, flags, 0o600)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_nlink != 1:
        os.close(descriptor)
        return None
    return descriptor


def _wait(descriptor: int, path: Path, doing: str, says_after: float, gives_up_after: float) -> bool:
    """Whether the lock is held now; False where the file system knows none."""
    began, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError:
            return False
        waited = time.monotonic() - began
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        if waited >= gives_up_after:
            raise UserError(
                f"{holder} has been {doing} for {waited:.0f} s and holds {path}; wait for its end, or end it, then "
                "run again."
            )
        if waited >= says_after and not said:
            said = True
            warnings.warn(f"waiting for {holder}, which is {doing} (it holds {path})", stacklevel=2)
        time.sleep(0.1)
