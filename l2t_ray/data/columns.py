"""Columns of values from the files that people bring: .npy, .npz, .csv, .parquet, .pt.

No file can run code here: NumPy's pickles are refused, and `.pt` files may hold tensors and NumPy arrays alone.
A CSV file's values stay text, so that nothing is guessed of one value that the others do not bear out.
"""

import contextlib
import csv
import io
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from l2t_ray.interfaces import UserError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_KINDS = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".pt", ".pth")
_SEPARATORS = (",", ";", "\t")
_FIRST_BYTES = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Table(NamedTuple):
    """A file's columns by name, each with one entry (a value, or a row of values) an image.

    Attributes:
        lines: of a CSV file, the line that each entry is from; None: entries have numbers alone.
        bare: names were made up, since the file has none.
    """

    path: Path
    columns: dict[str, np.ndarray]
    lines: Sequence[int] | None = None
    bare: bool = False

    def where(self, row: int) -> str:
        """Where an entry stands, for messages."""
        return f"row {row} (from 0)" if self.lines is None else f"line {self.lines[row]}"


def read_table(path: Path, *, values: Sequence[str] = ()) -> Table:
    """What is in the file.

    Args:
        values: texts that are values, beside numbers: a CSV file's first line that holds nothing else is no line of
            names.

    Raises:
        UserError: if there is no such file, it is of another kind, damaged, or has anything but plain values in it.
    """
    if not path.is_file():
        raise UserError(f"data.noise.file: there is no file {path}; give an existing one.")
    if path.suffix.lower() not in _KINDS:
        raise UserError(
            f"data.noise.file must end in .npy, .npz, .csv, .tsv, .parquet or .pt, got {path.name!r}; convert it to "
            "one of them."
        )
    with _naming_the_damaged(path):
        table = _read(path, values)
    if not table.columns:
        raise UserError(f"data.noise.file: {path} has no column; give a file with one label an image.")
    names = in_one_form(list(table.columns))
    return table._replace(columns=dict(zip(names, table.columns.values(), strict=True)))


def in_one_form(names: Sequence[str]) -> list[str]:
    """Letters with accents have two forms in Unicode, and systems differ in which they write; NFC, unless two names
    would become one."""
    changed = [unicodedata.normalize("NFC", name) for name in names]
    return changed if len(set(changed)) == len(set(names)) else list(names)


@contextlib.contextmanager
def _naming_the_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # A damaged file can raise nearly anything.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which could run code; save an array of numbers or of text"
        if reason.startswith("Weights only load failed"):
            reason = "it is damaged, or holds more than tensors and arrays, which could run code"
        raise UserError(f"data.noise.file: {path} cannot be read ({reason}); give an undamaged file.") from error


def _read(path: Path, values: Sequence[str]) -> Table:
    match path.suffix.lower():
        case ".npy" | ".npz":
            return Table(path, _of_numpy(path))
        case ".csv" | ".tsv":
            return _of_csv(path, set(in_one_form(values)))
        case ".parquet":
            return Table(path, _of_parquet(parquet.read_table(path)))
        case _:
            return Table(path, _of_torch(path))


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _of_numpy(path: Path) -> dict[str, np.ndarray]:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray) != (path.suffix.lower() == ".npy"):
        kind = ".npy" if isinstance(content, np.ndarray) else ".npz"
        raise UserError(f"data.noise.file: {path} is a file of the kind {kind} by its content; rename it so.")
    if isinstance(content, np.ndarray):
        return {name: content[name] for name in content.dtype.names} if content.dtype.names else {"": content}
    with content as file:
        columns = dict(file)
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            raise UserError(f"data.noise.file: {path} has {name!r}, which is no array; save arrays alone.")
    return columns


def _of_csv(path: Path, values: set[str]) -> Table:
    content = path.read_bytes()
    encoding = _FIRST_BYTES.get(content[:2], "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not UTF-8, at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("there are zero bytes in its text; save it as UTF-8")
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines, blank = [], [], None
    for fields in reader:
        if not rows and fields and fields[0].startswith("#") and fields[0] not in values:
            continue  # a comment above the values
        if not fields or (len(fields) > 1 and not any(field.strip() for field in fields)):
            blank = blank or (reader.line_num if rows else None)
            continue
        if blank is not None:
            raise ValueError(f"line {blank} is empty, and others follow; is a label missing there? Mend or remove it")
        rows.append([unicodedata.normalize("NFC", field.strip()) for field in fields])
        lines.append(reader.line_num)
    if not rows:
        raise ValueError("it is empty")
    rows = _without_empty_columns(rows)
    first = rows[0]
    for fields, line in zip(rows, lines, strict=True):
        if len(fields) != len(first):
            raise ValueError(f"line {line} has {len(fields)} values, the first {len(first)}")
    bare = _is_bare(rows, values)
    names = [f"f{number}" for number in range(len(first))] if bare else first
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}")
    start = 0 if bare else 1
    columns = {name: np.array([row[k] for row in rows[start:]], dtype=str) for k, name in enumerate(names)}
    return Table(path, columns, lines[start:], bare)


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """Spreadsheets end lines in separators with nothing behind them."""
    used = {k for row in rows for k, field in enumerate(row) if field}
    width = max(used, default=-1) + 1
    dropped = set(range(width)) - used if all(len(row) >= width for row in rows) else set()
    return [[field for k, field in enumerate(row[:width]) if k not in dropped] for row in rows]


def _separator(text: str) -> str:
    """The one that cuts the first line into most pieces; of equals, the one that cuts every line into as many."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")][:100]

    def pieces(separator: str) -> tuple[int, bool]:
        counts = [len(fields) for fields in csv.reader(lines, delimiter=separator)]
        return max(counts[:1], default=0), len(set(counts)) == 1

    return max(_SEPARATORS, key=pieces)


def _is_bare(rows: Sequence[Sequence[str]], values: set[str]) -> bool:
    """Whether the first row holds values, not names."""
    first = rows[0]
    if not all(is_number(field) or field in values for field in first):
        return False
    # Columns of numbers under names of classes: one column a class.
    if all(map(is_number, first)):
        return not _heads_one_hot(rows, values)
    return not all(is_number(field) for row in rows[1:2] for field in row)


def _heads_one_hot(rows: Sequence[Sequence[str]], values: set[str]) -> bool:
    """Whether the first row are classes that are called by numbers, or the classes' numbers, above one-hot rows."""

    def is_one_hot(row: Sequence[str]) -> bool:
        numbers = [float(field) if is_number(field) else -1.0 for field in row]
        return sorted(numbers) == [0.0] * (len(row) - 1) + [1.0]

    first, count = rows[0], len(values)
    is_named = len(first) == count > 1 and (set(first) == values or list(first) == [str(k) for k in range(count)])
    return is_named and not is_one_hot(first) and len(rows) > 1 and all(map(is_one_hot, rows[1:]))


def _of_parquet(table: pa.Table) -> dict[str, np.ndarray]:
    names = _class_names(table.schema)
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if name in names and pa.types.is_integer(column.type):
            # The file's own class names say what its numbers mean; -1, no label, has none.
            column = pa.array([_named(number, names[name]) for number in column.to_pylist()], pa.string())
        values = column.to_numpy(zero_copy_only=False)
        if len(values) and values.dtype == object and all(isinstance(value, np.ndarray) for value in values):
            values = np.stack(list(values))  # one row of values an image
        columns[name] = values
    return columns


def _named(number: int | None, names: Sequence[str]) -> str | None:
    if number is None or 0 <= number < len(names):
        return None if number is None else names[number]
    return str(number)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """By column, the class names that Hugging Face's data sets keep beside numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(map(str, feature["names"])) for name, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _of_torch(path: Path) -> dict[str, np.ndarray]:
    # CIFAR-10N is published as a pickled dict of NumPy arrays. Nothing but arrays is let in.
    rebuild: Any = np.empty(0).__reduce__()[0]  # pyright: ignore[reportIndexIssue]
    dtypes = [
        type(np.dtype(kind)) for kind in (np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64)
    ]
    allowed: list[Any] = [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        (_bytes_of_text, "_codecs.encode"),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words on sparse and quantised tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        content = {"": content}
    return {str(name): _array(value, str(name), path) for name, value in content.items()}


def _array(value: Any, name: str, path: Path) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    remedy = _remedy(value)
    if remedy is not None:
        kind = str(value.dtype) if value.layout is torch.strided else f"{value.dtype} and layout {value.layout}"
        which = f" {name!r}" if name else ""
        raise UserError(f"data.noise.file: {path} has a tensor{which} of {kind}, which NumPy has not; {remedy}.")
    return value.detach().resolve_conj().resolve_neg().numpy()


def _remedy(value: torch.Tensor) -> str | None:
    """What makes a plain tensor of one that NumPy cannot hold; None: it can."""
    if value.is_meta:
        return "it is on the device meta, without values; save it with them"
    if value.layout is not torch.strided:
        return "save it after .to_dense()"
    if value.is_quantized:
        return "save it after .dequantize()"
    try:
        torch.empty(0, dtype=value.dtype).numpy()
    except TypeError:
        return "save it after .float()"
    return None


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into the older pickles."""
    del encoding  # latin1, always
    return text.encode("latin1")
