"""Images and boxes that lie in files: looked at as a whole, kept in memory where they fit, else read when asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import UInt8

from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet, Boxes, clipped
from l2t_ray.data.image_files import content_of, read_all_once, statistics, tracked
from l2t_ray.data.pictures import Look, Picture, Reading, agree, look_at, pixels_of, shown
from l2t_ray.interfaces import UserError

IN_MEMORY = 2 << 30
"""Bytes of pixels up to which a set is kept in memory, in each process."""
PARTS = ("train", "validation", "test")


class BoxFile(NamedTuple):
    """An image, its boxes, and the size that the annotation says it has (height and width; None: it does not)."""

    image: Path
    boxes: Boxes
    size: tuple[int, int] | None
    where: str
    """The annotation, for messages."""


class FileImages(Sequence[np.ndarray]):
    """Pixels, in three colours, that are read from their files each time."""

    def __init__(self, files: Sequence[Path], reading: Reading):
        self._files, self._reading = files, reading

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, row: int) -> UInt8[np.ndarray, "3 h w"]: ...
    @overload
    def __getitem__(self, row: slice) -> "FileImages": ...
    def __getitem__(self, row: int | slice) -> "np.ndarray | FileImages":
        if isinstance(row, slice):
            return self.part(range(*row.indices(len(self))))
        path = self._files[row]
        pixels, done = pixels_of(Picture(path, shown(path)), self._reading, None)
        if any("EXIF" in what for what in done):
            raise UserError(
                f"{shown(path)} is to be turned as its EXIF data says, and its boxes are not; save it upright."
            )
        return np.ascontiguousarray(pixels)

    def part(self, rows: Sequence[int]) -> "FileImages":
        return FileImages([self._files[row] for row in rows], self._reading)


def open_files(
    name: str, parts: Mapping[str, Sequence[BoxFile]], class_names: tuple[str, ...], notes: Sequence[str] = ()
) -> BoxedDataset:
    """A set from the files of its parts: `train`, `test` and, where images are set apart for it, `validation`.

    Every image is read once, before anything is trained. Boxes are cut at the edges of their image; what has no area
    then is left out. Both are noted. Images without a box stay: there is nothing to be found on them.

    Raises:
        UserError: if a file cannot be read, has another size than its annotation says, is in two parts, or a part has
            no box.
    """
    _check_disjoint(name, parts)
    files = [file for part in PARTS for file in parts.get(part, ())]
    looks = [look_at(Picture(file.image, shown(file.image))) for file in files]
    reading, converted = agree(looks)
    images = FileImages([file.image for file in files], reading._replace(mode="RGB"))
    for file, look in zip(files, looks, strict=True):
        _check_size(file, look)
    boxes, more = _within(files, looks)
    numbers = {part: len(parts.get(part, ())) for part in PARTS}
    starts = dict(zip(PARTS, np.cumsum([0, *numbers.values()]).tolist(), strict=False))
    rows = {part: range(starts[part], starts[part] + numbers[part]) for part in PARTS}
    more += _notes_on_boxes(name, {part: [boxes[row] for row in rows[part]] for part in parts}, class_names)

    if 3 * sum(height * width for height, width in (look.size for look in looks)) <= IN_MEMORY:
        kept: Sequence[np.ndarray] = [images[row] for row in tracked(range(len(files)), f"reading {name}")]
    else:
        kept = images
        read_all_once(images, [file.image for file in files], name)
    mean, std = statistics(lambda row: kept[row], rows["train"], 3)

    def part_of(chosen: Sequence[int]) -> BoxedSet:
        paths = [files[row].image for row in chosen]
        is_read = isinstance(kept, FileImages)
        return BoxedSet(
            kept.part(chosen) if isinstance(kept, FileImages) else [kept[row] for row in chosen],
            [boxes[row] for row in chosen],
            np.array([looks[row].size for row in chosen], dtype=np.int64),
            class_names,
            [shown(path) for path in paths],
            content_of(paths) if is_read else None,
        )

    apart = np.arange(numbers["train"], numbers["train"] + numbers["validation"]) if numbers["validation"] else None
    train, test = part_of([*rows["train"], *rows["validation"]]), part_of(rows["test"])
    return BoxedDataset(name, train, test, mean, std, apart, (*notes, *converted, *more))


def _check_disjoint(name: str, parts: Mapping[str, Sequence[BoxFile]]) -> None:
    part_of: dict[Path, str] = {}
    for part, files in parts.items():
        for file in files:
            path = file.image.resolve()
            if (before := part_of.get(path)) == part:
                raise UserError(f"data.name={name}: {shown(file.image)} is in the {part} part twice; list it once.")
            part_of[path] = part
            if before is not None:
                raise UserError(
                    f"data.name={name}: {shown(file.image)} is in the {before} part and in the {part} part; take it "
                    "out of one."
                )


def _check_size(file: BoxFile, look: Look) -> None:
    if file.size is not None and file.size != look.size:
        raise UserError(
            f"{file.where} says that {shown(file.image)} has {file.size[1]}x{file.size[0]} pixels, and it has "
            f"{look.size[1]}x{look.size[0]}, so boxes would not lie where they belong; give both the same size."
        )


def _within(files: Sequence[BoxFile], looks: Sequence[Look]) -> tuple[list[Boxes], list[str]]:
    results = [clipped(file.boxes, *look.size) for file, look in zip(files, looks, strict=True)]
    notes = []
    for what, numbers in (
        ("cut at the edge of their image", [result.num_cut for result in results]),
        ("left out, having no area within their image", [result.num_empty for result in results]),
    ):
        if sum(numbers):
            first = next(file for file, number in zip(files, numbers, strict=True) if number)
            notes.append(f"{sum(numbers)} boxes {what}, the first on {shown(first.image)}")
    return [result.boxes for result in results], notes


def _notes_on_boxes(name: str, boxes: Mapping[str, Sequence[Boxes]], class_names: Sequence[str]) -> list[str]:
    """What is odd about them, but may be meant.

    Raises:
        UserError: if a part has no box that is an object.
    """
    counts = {}
    for part, of_part in boxes.items():
        labels = [np.zeros(0, dtype=np.int64), *(each.labels[~each.crowd] for each in of_part)]
        counts[part] = np.bincount(np.concatenate(labels), minlength=len(class_names))
        if not counts[part].sum():
            raise UserError(f"data.name={name}: no image of the {part} part has a box that counts; add some.")
    notes = []
    if empty := sum(len(each.labels) == 0 for of_part in boxes.values() for each in of_part):
        notes.append(f"{empty} images have no box: nothing is to be found on them")
    if absent := [class_names[number] for number in np.flatnonzero(counts["train"] == 0).tolist()]:
        more = f" (nor {len(absent) - 1} others)" if absent[1:] else ""
        notes.append(f"no training image has a box of the class {absent[0]!r}{more}")
    return notes
