"""A run's directory: taken by one process at a time, and left as it was by a run that never began."""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2t_ray.files import PRIVATE
from l2t_ray.interfaces import UserError
from l2t_ray.processes import is_alive
from l2t_ray.training.checkpoint_names import in_order

CHECKPOINTS = "checkpoints"
LOCK = "run.lock"
PATIENCE_S = 2.0
"""How long a process that was killed may take to be gone."""


@dataclass
class RunPlace:
    """A directory that this process holds.

    Attributes:
        directory: of the run.
        has_begun: whether there is something in it that is worth keeping, such as the first row.
    """

    directory: Path
    has_begun: bool = False


@contextmanager
def taken(directory: Path, *, is_new: bool, another: str = "another name= or runs=") -> Iterator[RunPlace]:
    """Takes a directory, makes it where it is missing, and takes it away again if nothing has begun in it.

    Args:
        is_new: it must not be there yet; where it is, another one with a number after its name is taken.
        another: how the caller is told to set another place.

    Raises:
        UserError: if another process holds it, it cannot be written to, or something in it or on the way to it is of
            the wrong kind.
    """
    _check_kinds(directory, another)
    missing = [path for path in directory.parents if not path.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory, is_made = _made_new(directory) if is_new else (directory, _made(directory))
        lock = _locked(directory, another)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; set {another}.") from None
    place = RunPlace(directory)
    try:
        yield place
    finally:
        if is_made and not place.has_begun and not _holds_checkpoints(directory):
            shutil.rmtree(directory, ignore_errors=True)
            _remove_empty(missing)
        else:
            with suppress(OSError):  # somebody has moved it, and what was done is still to be given back
                (directory / LOCK).unlink()
        os.close(lock)


def _check_kinds(directory: Path, another: str) -> None:
    """
    Raises:
        UserError: if something else stands where a run needs a directory, or its lock file.
    """
    for path in (*reversed(directory.parents), directory, directory / CHECKPOINTS):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is {_kind(path)}, and a run needs a directory there; remove it, or set {another}.")
    lock = directory / LOCK
    if os.path.lexists(lock) and not stat.S_ISREG(lock.lstat().st_mode):
        raise UserError(f"{lock} is {_kind(lock)}, and a run locks a plain file there; remove it, or set {another}.")


def _kind(path: Path) -> str:
    """What stands there, which is not what should."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        try:
            path.stat()
        except OSError as error:
            is_loop = error.errno == errno.ELOOP
            return "a link in a loop" if is_loop else f"a link to {path.readlink()}, which cannot be reached"
        return f"a link to {path.readlink()}"
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _made_new(wanted: Path) -> tuple[Path, bool]:
    """The first of `wanted`, `wanted-2`, `wanted-3`, ... that this process and no other one makes."""
    directory, number = wanted, 1
    while not _made(directory):
        number += 1
        directory = wanted.with_name(f"{wanted.name}-{number}")
    return directory, True


def _made(directory: Path) -> bool:
    """Whether it was missing and this process made it."""
    try:
        directory.mkdir()
    except FileExistsError:
        if not directory.is_dir():
            raise
        return False
    return True


def _locked(directory: Path, another: str) -> int:
    """The descriptor of the directory's lock file, which the system frees when this process ends, however it does."""
    path, give_up = directory / LOCK, time.monotonic() + PATIENCE_S
    while True:
        directory.mkdir(parents=True, exist_ok=True)  # again: a run that never began may just have removed it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
        try:
            if _is_locked(descriptor):
                if _is_file(descriptor, path):
                    _write_holder(descriptor)
                    return descriptor
            elif time.monotonic() > give_up:
                raise UserError(
                    f"{directory} is in use by {_holder(descriptor)}; wait for it to end, or set {another}."
                )
            else:
                time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether the lock is ours now. A file system without locks leaves it to what the file says."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        facts = _facts(descriptor)
        return facts.get("host") != socket.gethostname() or not is_alive(facts.get("pid"))
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the path is still that of the open file: its last holder may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _write_holder(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(facts).encode(), 0)


def _holder(descriptor: int) -> str:
    facts = _facts(descriptor)
    if not facts:
        return "another process"
    return f"process {facts.get('pid')} on {facts.get('host')} since {facts.get('since')}"


def _facts(descriptor: int) -> dict[str, Any]:
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _holds_checkpoints(directory: Path) -> bool:
    try:
        return bool(in_order(path.name for path in (directory / CHECKPOINTS).iterdir()))
    except OSError:
        return False


def _remove_empty(directories: Iterable[Path]) -> None:
    """Those that were made on the way, innermost first."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:
            return
