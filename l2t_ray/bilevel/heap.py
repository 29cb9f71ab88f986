"""When the C library's allocator gives memory back to the system: a choice between time and memory.

A student's activations are a few megabytes each and come and go thousands of times a round. glibc hands such pieces
back to the system and asks for fresh ones, which the system has to clear: up to a tenth of a round's time. Kept for
the next activation, they are free, but lie scattered: larger ones then do not fit between them, and the process grows
far beyond what it uses. So memory is kept, except where a peak is to be cut.

On other C libraries than glibc these functions do nothing.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = -1  # a round of a large student frees more at once than fits an int
_LARGE = 1 << 18
"""Bytes from which on a piece is a mapping of its own, where memory is given back at once."""


def keep_freed_memory() -> None:
    """From now on this process keeps freed memory for its next use. For programs, at their start."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        if not libc.mallopt(_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_MMAP_THRESHOLD, 2**25)  # older ones allow no more


def give_back_memory() -> None:
    """What nobody uses any more goes back to the system now. For programs that do one thing after another."""
    gc.collect()  # figures and modules refer to each other, and would wait for a collection that may never come
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@contextmanager
def returned_memory() -> Iterator[Callable[[], None]]:
    """What is free before goes back to the system; inside, so does what had to be taken anew, as soon as it is free.

    Afterwards memory is kept again. Gives a function to call inside where much lies free in between.
    """
    if (libc := _glibc()) is None:
        yield lambda: None
        return

    def give_back() -> None:
        libc.malloc_trim(0)

    give_back()
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield give_back
    finally:
        keep_freed_memory()
        give_back()


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return None
