"""Labels and transition matrices that people bring as files: .npy, .npz, .csv, .parquet, .pt.

No file can run code here: NumPy's pickles are refused, and `.pt` files may hold tensors and NumPy arrays alone.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import torch
from jaxtyping import Float, Int

from l2t_ray.data.arrow import ImageSet
from l2t_ray.interfaces import UserError

CLEAN_COLUMNS = ("clean", "clean_label")
"""Names under which a file may carry the clean labels as well; they are used to check its order (CIFAR-10N's own
file calls them `clean_label`)."""

Columns = dict[str, np.ndarray]


def read_labels(
    path: Path, images: ImageSet, *, column: str | None = None, num_own: int | None = None
) -> Int[np.ndarray, " n"]:
    """One label an image, from a user's file.

    The file has either a label for each image that is there, in order, or a label for each image of the set as
    published, of which those at `images.positions` are taken (copies may lack images).

    Args:
        path: `.npy`; or `.npz`, `.csv` (with or without a line of names), `.parquet` or `.pt` with named columns.
        images: the training set. Labels are class numbers or class names.
        column: which column; may be left out where there is one alone.
        num_own: of the images, only the first so many have labels in the file; the others keep their own.

    Raises:
        UserError: if the file cannot be read, has no such column, has another number of labels, labels that are no
            classes, or (where it has clean labels too) plainly another order.
    """
    columns = _read(path)
    given = _as_classes(_pick(columns, column, path), images.class_names, path)
    own = slice(len(images) if num_own is None else num_own)
    for name in CLEAN_COLUMNS:
        if name in columns:
            clean = _aligned(_as_classes(columns[name], images.class_names, path), images.positions[own], path)
            agreeing = float((clean == images.labels[own]).mean())
            if agreeing < 0.99:
                raise UserError(
                    f"data.noise.file: the column {name!r} of {path} agrees with the data set on {agreeing:.0%} of the "
                    "images, so its labels stand in another order; sort them like the data set."
                )
    labels = images.labels.copy()
    labels[own] = _aligned(given, images.positions[own], path)
    return labels


def read_matrix(path: Path, num_classes: int, *, column: str | None = None) -> Float[np.ndarray, "c c"]:
    """A transition matrix T[i, j] = P(label j | class i). In `.csv` and `.parquet` files a row of the file is one of T.

    Raises:
        UserError: if the file cannot be read, or the matrix is not `num_classes` square.
    """
    columns = _read(path)
    if path.suffix in (".csv", ".parquet"):
        matrix = np.stack(list(columns.values()), axis=1)
    else:
        matrix = _pick(columns, column, path)
    if matrix.shape != (num_classes, num_classes) or not np.issubdtype(matrix.dtype, np.number):
        raise UserError(
            f"data.noise.file: {path} must hold {num_classes} x {num_classes} numbers, got shape {matrix.shape} of "
            f"{matrix.dtype}; row i is the true class, column j the label it is given."
        )
    return matrix.astype(np.float64)


def _read(path: Path) -> Columns:
    if not path.exists():
        raise UserError(f"data.noise.file: there is no file {path}; give an existing one.")
    try:
        match path.suffix:
            case ".npy":
                return {"": np.load(path, allow_pickle=False)}
            case ".npz":
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            case ".csv":
                return _of_table(csv.read_csv(path, csv.ReadOptions(autogenerate_column_names=_is_bare(path))))
            case ".parquet":
                return _of_table(parquet.read_table(path))
            case ".pt" | ".pth":
                return _of_torch(path)
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        BadZipFile,
        pickle.UnpicklingError,
        pa.ArrowException,
    ) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"data.noise.file: {path} cannot be read ({reason}); give an undamaged file.") from error
    raise UserError(
        f"data.noise.file must end in .npy, .npz, .csv, .parquet or .pt, got {path.name!r}; convert it to one of them."
    )


def _is_bare(path: Path) -> bool:
    """Whether a CSV file begins with values instead of names."""
    with path.open() as file:
        first = file.readline().strip().split(",")
    try:
        [float(field) for field in first]
    except ValueError:
        return False
    return True


def _of_table(table: pa.Table) -> Columns:
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def _of_torch(path: Path) -> Columns:
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
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        content = {"": content}
    return {str(name): np.asarray(value) for name, value in content.items()}


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into the older pickles."""
    del encoding  # latin1, always
    return text.encode("latin1")


def _pick(columns: Columns, column: str | None, path: Path) -> np.ndarray:
    if column is None and len(columns) == 1:
        return next(iter(columns.values()))
    if column is None or column not in columns:
        what = "is not set" if column is None else f"is {column!r}"
        raise UserError(f"data.noise.column {what}, and {path} has {', '.join(map(repr, columns))}; name one of them.")
    return columns[column]


def _as_classes(values: np.ndarray, class_names: Sequence[str], path: Path) -> Int[np.ndarray, " m"]:
    values = np.asarray(values).reshape(-1)
    if values.dtype.kind in "OUS":
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = sorted({str(value) for value in values} - set(numbers))
        if unknown:
            raise UserError(
                f"data.noise.file: {path} has the label {unknown[0]!r}, which is no class of the data set "
                f"({', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}); use names or numbers."
            )
        return np.array([numbers[str(value)] for value in values], dtype=np.int64)
    labels = values.astype(np.int64) if np.isfinite(values.astype(np.float64)).all() else None
    if labels is None or (labels != values).any() or labels.min(initial=0) < 0:
        raise UserError(f"data.noise.file: the labels in {path} must be whole numbers from 0; mend those that are not.")
    if labels.max(initial=0) >= len(class_names):
        raise UserError(
            f"data.noise.file: {path} has the label {labels.max()}, and the data set has classes 0 to "
            f"{len(class_names) - 1}; mend the file."
        )
    return labels


def _aligned(labels: Int[np.ndarray, " m"], positions: Int[np.ndarray, " n"], path: Path) -> Int[np.ndarray, " n"]:
    if len(labels) == len(positions):
        return labels
    if len(positions) and len(labels) > positions.max():
        return labels[positions]
    raise UserError(
        f"data.noise.file: {path} has {len(labels)} labels for {len(positions)} training images; give one an image."
    )
