"""Images that lie in files, whatever they are labelled with: read once as a whole, counted, told from others."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.progress import track

from l2t_ray.data.converted import cache_directory, stamp
from l2t_ray.data.dataset import statistics_of_counts, value_counts
from l2t_ray.data.pictures import shown

COUNTED = 500
"""Images, evenly spaced, whose pixels are counted for mean and standard deviation."""


def statistics(
    image: Callable[[int], UInt8[np.ndarray, "c h w"]], rows: Sequence[int], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, from up to `COUNTED` of these images."""
    counts = np.zeros((channels, 256), dtype=np.int64)
    for row in _evenly(rows, COUNTED):
        counts += value_counts(image(row))
    mean, std = statistics_of_counts(counts)
    return mean, tuple(max(value, 1 / 255) for value in std)  # images of one colour have nothing to be scaled by


def read_all_once(images: Sequence[Any], paths: Iterable[Path], name: str) -> None:
    """Finds what cannot be read before anything is trained; files that were found all right are not read again.

    Args:
        images: each is read when it is asked for.
        paths: of all files that they are read from.
    """
    facts = [f"{shown(path)} {stamp(path.stat())}" for path in paths]
    found = hashlib.sha256("\0".join(facts).encode(errors="surrogateescape")).hexdigest()
    mark = cache_directory() / "read" / found
    if mark.exists():
        return
    for row in tracked(range(len(images)), f"checking images of {name}"):
        images[row]
    with suppress(OSError):  # without a cache they are read again the next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def content_of(paths: Iterable[Path]) -> str:
    """Tells the content of these files from any other."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def tracked(things: Iterable[Any], what: str) -> Iterable[Any]:
    """The things, with a bar on a terminal."""
    return track(list(things), description=what, transient=True, disable=not sys.stdout.isatty())


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    return [rows[int(i)] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round())]
