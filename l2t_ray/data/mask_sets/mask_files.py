"""Images and masks that lie in files: looked at as a whole, kept in memory where they fit, else read when asked for."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from rich.progress import track

from l2t_ray.data.dataset import statistics_of_counts, value_counts
from l2t_ray.data.mask_sets.coding import IGNORE, Coding
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet, Pair
from l2t_ray.data.pictures import Picture, Reading, agree, look_at, pixels_of, shown, stored_values
from l2t_ray.interfaces import UserError

IN_MEMORY = 2 << 30
"""Bytes of pixels and masks up to which a set is kept in memory, in each process."""
COUNTED = 500
"""Images, evenly spaced, whose pixels are counted for mean and standard deviation."""


class MaskFile(NamedTuple):
    """An image and the file of its mask."""

    image: Path
    mask: Path


class FilePairs(Sequence[Pair]):
    """Pairs that are read from their files each time."""

    def __init__(self, files: Sequence[MaskFile], reading: Reading, coding: Coding):
        self._files, self._reading, self._coding = files, reading, coding

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, row: int) -> Pair: ...
    @overload
    def __getitem__(self, row: slice) -> "FilePairs": ...
    def __getitem__(self, row: int | slice) -> "Pair | FilePairs":
        if isinstance(row, slice):
            return self.part(range(*row.indices(len(self))))
        file = self._files[row]
        pixels, done = pixels_of(Picture(file.image, shown(file.image)), self._reading, None)
        if any("EXIF" in what for what in done):
            raise UserError(
                f"{shown(file.image)} is to be turned as its EXIF data says, and its mask has none; save it upright."
            )
        return np.ascontiguousarray(pixels), read_mask(file.mask, self._coding)

    def part(self, rows: Sequence[int]) -> "FilePairs":
        return FilePairs([self._files[row] for row in rows], self._reading, self._coding)


def read_mask(path: Path, coding: Coding) -> np.ndarray:
    return coding.classes(stored_values(Picture(path, shown(path))), shown(path))


def open_files(
    name: str, parts: Mapping[str, Sequence[MaskFile]], class_names: tuple[str, ...] | None, coding: Coding
) -> MaskedDataset:
    """A set from the files of its parts: `train`, `test` and, where images are set apart for it, `validation`.

    Every mask is read once, before anything is trained. Images without a pixel that counts are left out, and noted.

    Args:
        class_names: None: numbers, up to the highest one of a training mask.

    Raises:
        UserError: if a file cannot be read, an image and its mask differ in size, a mask has a class that is none, or
            a part has nothing to learn from.
    """
    files = [file for part in parts.values() for file in part]
    looks = [look_at(Picture(file.image, shown(file.image))) for file in files]
    reading, notes = agree(looks)
    pairs = FilePairs(files, reading, coding)
    channels = 3 if reading.mode == "RGB" else 1
    total = sum(look.size[0] * look.size[1] * (channels + 1) for look in looks)
    kept: Sequence[Pair] = pairs
    classes: dict[str, Counter[int]] = {part: Counter() for part in parts}
    counts = np.zeros((channels, 256), dtype=np.int64)
    of_part = [part for part, listed in parts.items() for _ in listed]
    if total <= IN_MEMORY:
        kept = [pairs[row] for row in _tracked(range(len(files)), f"reading {name}")]
    rows: dict[str, list[int]] = {part: [] for part in parts}
    for row, (part, look) in enumerate(_tracked(zip(of_part, looks, strict=True), f"checking masks of {name}")):
        mask = kept[row][1] if kept is not pairs else read_mask(files[row].mask, coding)
        if mask.shape != look.size:
            raise UserError(
                f"{shown(files[row].mask)} has {mask.shape[1]}x{mask.shape[0]} pixels and its image "
                f"{shown(files[row].image)} {look.size[1]}x{look.size[0]}; give both the same size."
            )
        present = Counter(dict(enumerate(np.bincount(mask.ravel(), minlength=256).tolist())))
        if present[IGNORE] == mask.size:
            notes.append(f"{shown(files[row].image)} left out: all of its pixels are ignored")
            continue
        classes[part].update(present)
        rows[part].append(row)
    _check_parts(name, rows)
    for row in _evenly(rows["train"], COUNTED):
        counts += value_counts(kept[row][0])
    mean, std = statistics_of_counts(counts)
    names = class_names or _numbered(classes["train"], name)
    notes += _notes_on_classes(classes, names, name)
    train = [*rows["train"], *rows.get("validation", [])]
    sets = [_set(kept, part, names, files, [looks[row].size for row in part]) for part in (train, rows["test"])]
    apart = np.arange(len(rows["train"]), len(train)) if rows.get("validation") else None
    return MaskedDataset(name, sets[0], sets[1], mean, tuple(max(s, 1 / 255) for s in std), apart, tuple(notes))


def _set(
    pairs: Sequence[Pair],
    rows: Sequence[int],
    names: tuple[str, ...],
    files: Sequence[MaskFile],
    sizes: Sequence[tuple[int, int]],
) -> MaskedSet:
    chosen = [files[row] for row in rows]
    here = (
        FilePairs(chosen, pairs._reading, pairs._coding) if isinstance(pairs, FilePairs) else [pairs[r] for r in rows]
    )
    return MaskedSet(here, np.array(sizes), names, IGNORE, [shown(file.image) for file in chosen])


def _check_parts(name: str, rows: Mapping[str, Sequence[int]]) -> None:
    for part, there in rows.items():
        if not there:
            raise UserError(f"data.name={name}: no image of the {part} part has a pixel that counts; add some.")


def _numbered(counts: Counter[int], name: str) -> tuple[str, ...]:
    present = [number for number, count in counts.items() if count and number != IGNORE]
    if len(present) < 2:
        raise UserError(
            f"data.name={name}: the training masks have a single class, {present[0]}, beside {IGNORE} for what is "
            f"ignored; where {IGNORE} is a class, write classes.csv with a line name,r,g,b for each."
        )
    return tuple(map(str, range(max(present) + 1)))


def _notes_on_classes(classes: Mapping[str, Counter[int]], names: Sequence[str], name: str) -> list[str]:
    """What is odd about the parts, but may be meant."""
    strange = [(part, n) for part, c in classes.items() for n, count in c.items() if count and len(names) <= n < IGNORE]
    if strange:
        part, number = strange[0]
        raise UserError(
            f"data.name={name}: a mask of the {part} part has the class number {number}, and those of the training "
            f"part go up to {len(names) - 1}; correct it, or name all classes in classes.txt."
        )
    absent = [name for number, name in enumerate(names) if not classes["train"][number]]
    more = f" (nor {len(absent) - 1} others)" if absent[1:] else ""
    return [f"no training mask has the class {absent[0]!r}{more}"] if absent else []


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    return [rows[int(i)] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round())]


def _tracked(things, what: str):
    return track(list(things), description=what, transient=True, disable=not sys.stdout.isatty())
