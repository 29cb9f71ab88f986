"""A part of a user's own images as a table: encoded images in one column, labels in another."""

import contextlib
import json
import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from l2t_ray.data.own_listing import Listing
from l2t_ray.data.pictures import Picture, shown
from l2t_ray.interfaces import UserError

COLUMNS = ("image", "label")
NO_LABEL = -1
"""Hugging Face's number for it."""


def listing_of(path: Path) -> Listing:
    """The rows of a Parquet or Arrow file that have a label.

    Raises:
        UserError: if the file cannot be read, lacks a column, or a column holds something else.
    """
    table = _read(path)
    names = _class_names(table.schema, path)
    labels = _labels(table.column("label"), names, path)
    kept = [row for row, label in enumerate(labels) if label is not None]
    if not kept:
        raise UserError(f"{shown(path)} has no labels (all {len(labels)} are absent or -1); give a file that has them.")
    contents = _contents(table.column("image"), kept, path)
    pictures = [Picture(content, f"row {row} of {shown(path)}") for row, content in zip(kept, contents, strict=True)]
    notes = ()
    if len(kept) < len(labels):
        notes = (f"{shown(path)}: {len(labels) - len(kept)} of {len(labels)} rows have no label and were left out",)
    chosen = [label for label in labels if label is not None]
    return Listing(pictures, chosen, np.array(kept), len(labels), names, notes)


def _read(path: Path) -> pa.Table:
    """The columns image and label. Never mapped: a file that is cut short meanwhile would end the process."""
    with _naming_the_damaged(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no regular file")
        columns, table = _read_parquet(path) if path.suffix == ".parquet" else _read_ipc(path)
        table.validate(full=True)  # offsets in a damaged file may point anywhere
    if sorted(table.column_names) != list(COLUMNS) or not table.num_rows:
        raise UserError(
            f"{shown(path)} needs at least one row, and the columns image and label once each; it has "
            f"{table.num_rows} rows and {', '.join(columns) or 'no column'}."
        )
    return table


@contextlib.contextmanager
def _naming_the_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # A damaged file can raise nearly anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(path)} cannot be read ({reason}); give an undamaged file.") from error


def _values(column: pa.ChunkedArray, path: Path) -> list[Any]:
    with _naming_the_damaged(path):  # the names of a damaged struct may be no text
        return column.to_pylist()


def _read_parquet(path: Path) -> tuple[Sequence[str], pa.Table]:
    with parquet.ParquetFile(path) as file:
        return file.schema_arrow.names, file.read(columns=list(COLUMNS))


def _read_ipc(path: Path) -> tuple[Sequence[str], pa.Table]:
    with pa.OSFile(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:  # Hugging Face writes streams
            file.seek(0)
            table = pa.ipc.open_stream(file).read_all()
    indices = [index for index, name in enumerate(table.column_names) if name in COLUMNS]
    return table.column_names, table.select(indices)


def _class_names(schema: pa.Schema, path: Path) -> tuple[str, ...] | None:
    """The class of each number, as Hugging Face's data sets keep them beside the columns."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise UserError(f"{shown(path)}: the names of its ClassLabel are no list of different names; mend them.")
    return tuple(names)


def _labels(column: pa.ChunkedArray, names: tuple[str, ...] | None, path: Path) -> list[str | None]:
    """A class name for each row; None for those without a label."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_number or is_text or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(
            f"{shown(path)}: the column label is of type {column.type}, where one number or name a row is understood; "
            "write one."
        )
    values = _values(column, path)
    if not is_number:
        return [None if value is None else _clean(str(value), row, path) for row, value in enumerate(values)]
    numbers = [_whole(value, row, path) for row, value in enumerate(values)]
    if names is not None:
        return [_named(number, names, row, path) for row, number in enumerate(numbers)]
    present = {number for number in numbers if number is not None}
    if NO_LABEL in present and min(present) == NO_LABEL and present not in ({NO_LABEL}, {NO_LABEL, 1}):
        raise UserError(
            f"{shown(path)}: row {numbers.index(NO_LABEL)} has the label -1, which may be a class or mean that "
            "there is none; write names, or leave such rows out."
        )
    if present == {NO_LABEL}:
        return [None] * len(numbers)
    return [None if number is None else str(number) for number in numbers]


def _whole(value: Any, row: int, path: Path) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not math.isfinite(value) or value != int(value):
        raise UserError(f"{shown(path)}: row {row} has the label {value}, which is no whole number; mend it.")
    return int(value)


def _named(number: int | None, names: tuple[str, ...], row: int, path: Path) -> str | None:
    if number is None or number == NO_LABEL:
        return None
    if not 0 <= number < len(names):
        raise UserError(
            f"{shown(path)}: row {row} has the label {number}, but the {len(names)} class names are those of "
            f"0..{len(names) - 1}; mend it."
        )
    return names[number]


def _clean(name: str, row: int, path: Path) -> str:
    if not name.strip():
        raise UserError(f"{shown(path)}: row {row} has an empty label; name its class, or leave the row out.")
    return name


def _contents(column: pa.ChunkedArray, rows: Sequence[int], path: Path) -> list[bytes]:
    contents, values = [], _values(column, path)
    for row in rows:
        value = values[row]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            where = value.get("path") if isinstance(value, dict) else None
            what = f"only the path {where!r}" if where else f"no encoded image ({column.type})"
            raise UserError(
                f"{shown(path)}: row {row} of the column image holds {what}; write the bytes of a PNG or JPEG file."
            )
        contents.append(content)
    return contents
