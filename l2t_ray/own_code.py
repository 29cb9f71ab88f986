"""Classes that the user brought, a loss or a method: what they raise is theirs to mend, and is said in a sentence."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from l2t_ray.interfaces import DivergenceError, StoppedError, UserError


def is_own(thing: object) -> bool:
    """Whether a class, or the class of an object, is none of this package's."""
    return _kind(thing).__module__.partition(".")[0] != __name__.partition(".")[0]


@contextmanager
def own_code(what: str, thing: object) -> Iterator[None]:
    """Inside, what is raised is the user's to mend if `thing` is: it becomes a `UserError`, with the cause behind it.

    Args:
        what: what the thing is called, as in `loss 'mine:Loss'`.
    """
    try:
        yield
    except (UserError, DivergenceError, StoppedError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if not is_own(thing):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UserError(f"{what} raises {reason}{_place(error, thing)}; mend it or its settings.") from error


def _kind(thing: object) -> type:
    return thing if isinstance(thing, type) else type(thing)


def _place(error: BaseException, thing: object) -> str:
    """Where in the file of the thing's class it was."""
    path = getattr(sys.modules.get(_kind(thing).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" ({Path(str(path)).name}, line {lines[-1]})" if lines else ""
