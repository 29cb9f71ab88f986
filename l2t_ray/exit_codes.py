"""How a job ends: one sentence and an exit code for whatever stops it.

0   done
1   more parts were lost than the run may lose, trials of a study failed, or a fault of this package (a traceback)
2   a mistake in what was asked for, or a file or directory that cannot be used
3   training diverged
130 stopped by Ctrl-C or SIGTERM

Imports nothing heavy, so that a job can enter `exit_codes` before it imports what takes seconds.
"""

import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from l2t_ray.masking import masked

FAILED, MISTAKE, DIVERGED, STOPPED = 1, 2, 3, 130

_OF_THE_PLACE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.EIO, errno.EINVAL),
}
"""What the operating system says of a place that somebody named, or of a disk."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what stops a job into one sentence on standard error and an exit code.

    Within the block, SIGTERM interrupts as Ctrl-C does, and a screen that is gone or full stops nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(_forgiving_screen())
        stack.enter_context(_interrupted_by_sigterm())
        stack.callback(setattr, warnings, "showwarning", warnings.showwarning)
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {masked(str(message))}", flush=True)
        try:
            yield
        except KeyboardInterrupt:
            raise SystemExit(said("stopped before the run began.", STOPPED)) from None
        except Exception as error:
            ending = _ending(error)
            if ending is None:
                raise
            raise SystemExit(said(*ending)) from None


def _ending(error: Exception) -> tuple[str, int] | None:
    """What is said, and the exit code; None: it is nobody's but this package's fault."""
    from l2t_ray.extras import sentence_about
    from l2t_ray.interfaces import DivergenceError, FailureLimitError, StoppedError, UserError  # they bring PyTorch

    match error:
        case UserError():
            return f"error: {error}", MISTAKE
        case FailureLimitError():
            return f"failed: {error}", FAILED
        case DivergenceError():
            return f"diverged: {error}", DIVERGED
        case StoppedError():
            return f"{error}", STOPPED
        case ModuleNotFoundError() if (sentence := sentence_about(error)) is not None:
            return f"error: {sentence}", MISTAKE
        case OSError(errno=number) if number in _OF_THE_PLACE:
            where = "" if error.filename is None else f"{error.filename}: "
            return f"error: {where}{error.strerror}; mend that or name another place.", MISTAKE
        case MemoryError() | RuntimeError() if _is_about_memory(error):
            advice = "lower training.batch_size, training.val_batch_size or the size of the student"
            return f"error: this needs more memory than there is; {advice}.", MISTAKE
        case RuntimeError() if "home directory" in str(error):  # pathlib's
            return "error: a path begins with ~, and there is no such home directory; write it out.", MISTAKE
        case RuntimeError() if str(error).startswith("Symlink loop"):  # pathlib's, before Python 3.13
            return f"error: {error}; mend that or name another place.", MISTAKE
    return None


def _is_about_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def said(text: str, code: int) -> int:
    """Says it on one line of standard error, whatever names it holds and without credentials; gives the code back."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in masked(text))
    print(line, file=sys.stderr, flush=True)
    return code


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class _Outlet(io.FileIO):
    """Where a screen's bytes go, until nobody takes them any more; from then on they go nowhere.

    Training goes on when the terminal, the pager or `head` at the other end is gone: its results are files.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@contextmanager
def _forgiving_screen() -> Iterator[None]:
    """Standard output and error that take any character, and that may be closed or go away."""
    before = sys.stdout, sys.stderr
    _fill_closed()
    sys.stdout, sys.stderr = (_forgiving(stream, number) for number, stream in enumerate(before, start=1))
    try:
        yield
    finally:
        for stream, old in zip((sys.stdout, sys.stderr), before, strict=True):
            if stream is not old:
                stream.flush()
        sys.stdout, sys.stderr = before


def _fill_closed() -> None:
    """Gives closed standard streams somewhere to go: the next file to be opened must not take their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _forgiving(stream: Any, number: int) -> Any:
    if stream is not None and stream not in (sys.__stdout__, sys.__stderr__):
        return stream  # somebody else's
    outlet = _Outlet(number, "w", closefd=False)
    is_unbuffered = stream is not None and stream.write_through
    return io.TextIOWrapper(
        outlet if is_unbuffered else io.BufferedWriter(outlet),  # type: ignore[arg-type]
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=stream.line_buffering if stream is not None else False,
        write_through=is_unbuffered,
    )
