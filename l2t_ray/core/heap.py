"""When the C library's allocator gives memory back to the system: a choice between time and memory.

A student's activations are a few megabytes each and come and go thousands of times a round. glibc hands such pieces
back to the system and asks for fresh ones, which the system has to clear: up to a tenth of a round's time. Kept for
the next activation, they are free, but lie scattered: larger ones then do not fit between them, and the process grows
far beyond what it uses. So memory is kept, except where a peak is to be cut.

Stored graphs are hundreds of megabytes that are read once each. In pages of 4 KiB their addresses take a tenth of a
round to look up; where the system lets programs ask for pages of 2 MiB (`transparent_hugepage`: madvise), we do.

On other C libraries than glibc these functions do nothing.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_NEVER, _DEFAULT_TOP_PAD = -1, 1 << 17
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 1 << 21  # sys/mman.h
_PIECE = 1 << 24  # as large as comes from the heap with any glibc once `keep_freed_memory` was called
_LARGE = 1 << 18
"""Bytes from which on a piece is a mapping of its own, where memory is given back at once."""


class _State:
    """Of this process's heap."""

    keeps = False
    reserved_end = 0


_state = _State()


def keep_freed_memory() -> None:
    """From now on this process keeps freed memory for its next use. For programs, at their start."""
    if (libc := _glibc()) is not None:
        _state.keeps = True
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        if not libc.mallopt(_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_MMAP_THRESHOLD, 2**25)  # older ones allow no more


def use_huge_pages() -> None:
    """What this process's heap grows by from now on is in large pages; to be called again after `returned_memory`.

    Does nothing unless `keep_freed_memory` was called: a heap that shrinks with every freed piece gains nothing.
    """
    libc = _glibc()
    if libc is None or not _state.keeps or (end := libc.sbrk(0)) == _state.reserved_end:
        return
    # Pages are asked for by address, so the addresses are taken at once: no memory until it is used.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    libc.mallopt(_TOP_PAD, min(2**31 - _HUGE_PAGE, total // 2))
    pieces = []
    while libc.sbrk(0) == end and len(pieces) < 128:
        pieces.append(libc.malloc(_PIECE))
    for piece in pieces:
        libc.free(piece)
    libc.mallopt(_TOP_PAD, _DEFAULT_TOP_PAD)
    first, _state.reserved_end = -(-end // _HUGE_PAGE) * _HUGE_PAGE, libc.sbrk(0)
    if _state.reserved_end > first:
        libc.madvise(first, _state.reserved_end - first, _MADV_HUGEPAGE)


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
        libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
        libc.sbrk.argtypes, libc.malloc.argtypes = [ctypes.c_ssize_t], [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return None
