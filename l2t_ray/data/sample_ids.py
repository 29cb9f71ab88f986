"""Which image each row of a file is for, by a column of file names or numbers."""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.columns import Table
from l2t_ray.interfaces import UserError

FILES = (
    *("file", "path", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "img"),
    *("files", "paths", "filenames", "images", "fname", "stem", "relative_path", "relpath"),
)
EITHER = ("id", "image_id", "sample_id", "sample", "key")
NUMBERS = ("index", "idx", "row", "position", "unnamed: 0", "__index_level_0__", "")
"""Names of such columns, in lower case: of files, of either, of numbers (the last ones as pandas has them)."""


def is_id(table: Table, name: str) -> bool:
    """Whether the column says which image a row is for, by its name."""
    values = table.columns[name]
    is_plain = values.ndim == 1 and (values.dtype.kind in "iufUS" or any(isinstance(v, str) for v in values.tolist()))
    return len(table.columns) > 1 and name.strip().lower() in (*FILES, *EITHER, *NUMBERS) and is_plain


def id_column(table: Table, label_column: str | None, images: ImageSet, own: slice) -> str | None:
    """The column to go by: of files, if there is one, else the first of the others, else one in which every entry is a
    file of the data set. None: there is none."""
    others = [name for name in table.columns if name != label_column]
    order = (*FILES, *EITHER, *NUMBERS)
    named = [name for name in others if is_id(table, name)]
    if named or images.names is None:
        return min(named, key=lambda name: order.index(name.strip().lower()), default=None)
    names = images.names[own]
    columns = table.columns
    texts = [n for n in others if len(columns) > 1 and columns[n].ndim == 1 and columns[n].dtype.kind in "UO"]
    return next((name for name in texts if all(len(p) == 1 for p in _by_file(_keys(table, name), names))), None)


def rows_by_id(table: Table, column: str, images: ImageSet, own: slice) -> Int[np.ndarray, " n"]:
    """For each of the images `own`, the row of the table that is for it.

    Files are told by their path below the data set's folder, by as much of its end as is unique, with or without the
    suffix; an absolute path must end in the path below the folder. Numbers count the images from 0, in the data set's
    order (where a copy lacks images, in that of the published set).

    Raises:
        UserError: if a row is for no image or for several, or an image has no row or two.
    """
    keys = _keys(table, column)
    kind = column.strip().lower()
    by_file = None if kind in NUMBERS or images.names is None else _by_file(keys, images.names[own])
    by_number = None if kind in FILES and by_file is not None else _by_number(keys, images.positions[own])
    if by_file is not None and by_number is not None:
        found_by = [places for places in (by_file, by_number) if all(len(p) == 1 for p in places)]
        if len(found_by) == 2 and by_file != by_number:
            _refuse(
                table,
                f"has a column {column!r} that fits the images both as file names and as numbers, differently; call it "
                "file or index",
            )
        places = found_by[0] if found_by else by_file
    else:
        places = by_file if by_file is not None else by_number
    if places is None:
        _refuse(
            table,
            f"has a column {column!r} of file names such as {keys[0]!r}, and the data set knows its images by number "
            "alone; give their places, from 0, in a column index, or remove it if the rows stand in the data set's "
            "order",
        )
    return _one_each(table, column, keys, places, images, own)


def _one_each(
    table: Table, column: str, keys: Sequence[str], places: Sequence[Sequence[int]], images: ImageSet, own: slice
) -> Int[np.ndarray, " n"]:
    count = len(images.positions[own])
    rows = np.full(count, -1)
    lacks_images = not np.array_equal(images.positions, np.arange(len(images)))
    for row, (key, found) in enumerate(zip(keys, places, strict=True)):
        where = f"in {table.where(row)}, column {column!r}"
        if not found:
            if lacks_images and key.isdecimal():
                continue  # an image of the published set that this copy does not have
            _refuse(table, f"names {key!r} {where}, which is none of the {count} training images{_example(images)}")
        if len(found) > 1:
            _refuse(table, f"names {key!r} {where}, which {len(found)} images are called; give more of their paths")
        if rows[found[0]] >= 0:
            _refuse(table, f"names {key!r} {where}, and {table.where(int(rows[found[0]]))} is for that image, too")
        rows[found[0]] = row
    for place in np.flatnonzero(rows < 0)[:1].tolist():
        image = images.positions[own][place] if images.names is None else images.names[place]
        _refuse(table, f"has no label for {(rows < 0).sum()} of the {count} training images, such as {str(image)!r}")
    return rows


def _by_file(keys: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    by_end: Mapping[str, list[int]] = defaultdict(list)
    by_name: dict[str, int] = {}
    for number, name in enumerate(unicodedata.normalize("NFC", name) for name in names):
        by_name[name] = number
        parts = name.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            by_end[end].append(number)
            if "." in parts[-1]:
                by_end[end.rpartition(".")[0]].append(number)

    def places(key: str) -> list[int]:
        parts = [part for part in key.replace("\\", "/").split("/") if part not in ("", ".")]
        found = by_end.get("/".join(parts), [])
        longer = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return found or [by_name[end] for end in longer if end in by_name][:1]

    return [places(key) for key in keys]


def _by_number(keys: Sequence[str], positions: Int[np.ndarray, " n"]) -> list[list[int]] | None:
    if not all(key.isascii() and key.isdecimal() for key in keys):
        return None
    place_of = {int(position): place for place, position in enumerate(positions)}
    return [[place_of[int(key)]] if int(key) in place_of else [] for key in keys]


def _keys(table: Table, column: str) -> list[str]:
    return [unicodedata.normalize("NFC", _text(value).strip()) for value in table.columns[column].tolist()]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _example(images: ImageSet) -> str:
    return "" if images.names is None else f", such as {images.names[0]!r}"


def _refuse(table: Table, problem: str) -> NoReturn:
    raise UserError(f"data.noise.file: {table.path} {problem}.")
