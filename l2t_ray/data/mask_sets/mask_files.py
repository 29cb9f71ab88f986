"""Images and masks that lie in files: looked at as a whole, kept in memory where they fit, else read when asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from l2t_ray.data.image_files import content_of, read_all_once, statistics, tracked
from l2t_ray.data.mask_sets.coding import IGNORE, Coding
from l2t_ray.data.masked_sets import IN_MEMORY, MaskedDataset, MaskedSet, Pair
from l2t_ray.data.pictures import Look, Picture, Reading, agree, look_at, pixels_of, shown, stored_values
from l2t_ray.interfaces import UserError


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
    pairs, channels = FilePairs(files, reading, coding), 3 if reading.mode == "RGB" else 1
    if sum(height * width * (channels + 1) for height, width in (look.size for look in looks)) <= IN_MEMORY:
        kept: Sequence[Pair] = [pairs[row] for row in tracked(range(len(files)), f"reading {name}")]
        masks = (mask for _, mask in kept)
    else:
        kept = pairs
        read_all_once(pairs, [path for file in files for path in file], name)
        masks = (read_mask(file.mask, coding) for file in files)

    rows: dict[str, list[int]] = {part: [] for part in parts}
    counts = {part: np.zeros(256, dtype=np.int64) for part in parts}
    of_part = [part for part, listed in parts.items() for _ in listed]
    for row, (part, file, look, mask) in enumerate(zip(of_part, files, looks, masks, strict=True)):
        _check_size(file, mask, look)
        present = np.bincount(mask.ravel(), minlength=256)
        if present[IGNORE] == mask.size:
            notes.append(f"{shown(file.image)} left out: all of its pixels are ignored")
            continue
        counts[part] += present
        rows[part].append(row)
    _check_parts(name, rows)

    names = class_names or _numbered(counts["train"], name)
    notes += _notes_on_classes(counts, names, name)
    mean, std = statistics(lambda row: kept[row][0], rows["train"], channels)
    train = [*rows["train"], *rows.get("validation", [])]
    sets = [_set(kept, part, names, files, [looks[row].size for row in part]) for part in (train, rows["test"])]
    apart = np.arange(len(rows["train"]), len(train)) if rows.get("validation") else None
    return MaskedDataset(name, sets[0], sets[1], mean, std, apart, tuple(notes))


def _check_size(file: MaskFile, mask: np.ndarray, look: Look) -> None:
    if mask.shape != look.size:
        raise UserError(
            f"{shown(file.mask)} has {mask.shape[1]}x{mask.shape[0]} pixels and its image {shown(file.image)} "
            f"{look.size[1]}x{look.size[0]}; give both the same size."
        )


def _set(
    pairs: Sequence[Pair],
    rows: Sequence[int],
    names: tuple[str, ...],
    files: Sequence[MaskFile],
    sizes: Sequence[tuple[int, int]],
) -> MaskedSet:
    chosen = [files[row] for row in rows]
    shown_names = [shown(file.image) for file in chosen]
    if not isinstance(pairs, FilePairs):
        return MaskedSet([pairs[row] for row in rows], np.array(sizes), names, IGNORE, shown_names)
    return MaskedSet(
        pairs.part(rows),
        np.array(sizes),
        names,
        IGNORE,
        shown_names,
        content_of([path for file in chosen for path in file]),
    )


def _check_parts(name: str, rows: Mapping[str, Sequence[int]]) -> None:
    for part, there in rows.items():
        if not there:
            raise UserError(f"data.name={name}: no image of the {part} part has a pixel that counts; add some.")


def _numbered(counts: np.ndarray, name: str) -> tuple[str, ...]:
    present = np.flatnonzero(counts[:IGNORE]).tolist()
    if len(present) < 2:
        raise UserError(
            f"data.name={name}: the training masks have a single class, {present[0]}, beside {IGNORE} for what is "
            f"ignored; where {IGNORE} is a class, write classes.csv with a line name,r,g,b for each."
        )
    return tuple(map(str, range(max(present) + 1)))


def _notes_on_classes(counts: Mapping[str, np.ndarray], names: Sequence[str], name: str) -> list[str]:
    """What is odd about the classes, but may be meant.

    Raises:
        UserError: if a mask has one that has no name.
    """
    for part, of_part in counts.items():
        if len(strange := np.flatnonzero(of_part[len(names) : IGNORE])):
            raise UserError(
                f"data.name={name}: a mask of the {part} part has the class number {len(names) + int(strange[0])}, and "
                f"those of the training part go up to {len(names) - 1}; correct it, or name all classes in classes.txt."
            )
    absent = [names[number] for number in np.flatnonzero(counts["train"][: len(names)] == 0).tolist()]
    more = f" (nor {len(absent) - 1} others)" if absent[1:] else ""
    return [f"no training mask has the class {absent[0]!r}{more}"] if absent else []
