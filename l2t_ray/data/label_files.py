"""Labels and transition matrices that people bring as files (`columns.py` says which)."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.class_labels import as_classes, is_one_hot, listed, say_once
from l2t_ray.data.columns import Table, in_one_form, is_number, read_table
from l2t_ray.data.sample_ids import id_column, is_id, rows_by_id
from l2t_ray.interfaces import UserError

CLEAN_COLUMNS = ("clean", "clean_label")
"""Names under which a file may carry the clean labels as well; they are used to check its order (CIFAR-10N's own
file calls them `clean_label`)."""
PUBLISHED = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "cifar100_coarse": 50_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "scikit-learn digits": 1_797,
}
"""How many images the sets have as published, by `ImageSet.source`; copies may lack some."""
FEWEST_COMPARED = 100
FEWEST_OF_A_CLASS = 5
"""Images a class, on average, below which labels that were drawn at random may look like a renumbering."""


def read_labels(
    path: Path, images: ImageSet, *, column: str | None = None, num_own: int | None = None
) -> Int[np.ndarray, " n"]:
    """One label an image, from a user's file.

    A column of file names or numbers of the images, where there is one, says which image a label is for
    (`sample_ids.py`). Without, the file has either a label for each image that is there, in order, or a label for each
    image of the set as published, of which those at `images.positions` are taken (copies may lack images).

    Args:
        path: `.npy`; or `.npz`, `.csv` (with or without a line of names), `.parquet` or `.pt` with named columns.
        images: the training set. Labels are class names, class numbers or one-hot rows (`class_labels.py`).
        column: which column; may be left out where there is one alone, but for those that name the images.
        num_own: of the images, only the first so many have labels in the file; the others keep their own.

    Raises:
        UserError: if the file cannot be read, has no such column, does not have one label for each image, or labels
            that are no classes; or if the labels plainly stand in another order.
    """
    table = read_table(path, values=images.class_names)
    class_names = in_one_form(images.class_names)
    column = None if column is None else unicodedata.normalize("NFC", column)
    own = slice(len(images) if num_own is None else num_own)
    given = as_classes(_pick_labels(table, column, class_names), class_names, table)
    named_by = id_column(table, column, images, own)
    _check_lengths(table, len(given), [name for name in (named_by, *CLEAN_COLUMNS) if name in table.columns])
    rows = (
        _rows_in_order(table, len(given), images, own) if named_by is None else rows_by_id(table, named_by, images, own)
    )
    known = images.labels[own]
    for name in CLEAN_COLUMNS:
        if name in table.columns and name != column:
            clean = as_classes(table.columns[name], class_names, table)[rows]
            agreeing = float((clean == known).mean())
            if agreeing < 0.99:
                raise UserError(
                    f"data.noise.file: the column {name!r} of {path} agrees with the data set on {agreeing:.0%} of the "
                    "images, so its labels stand in another order; sort them like the data set."
                )
    observed = given[rows]
    _check_numbering(observed, known, class_names, path)
    if named_by is None:
        _check_order(observed, known, path)
    labels = images.labels.copy()
    labels[own] = observed
    return labels


def read_matrix(
    path: Path, num_classes: int, *, column: str | None = None, class_names: Sequence[str] = ()
) -> Float[np.ndarray, "c c"]:
    """A transition matrix T[i, j] = P(label j | class i). In `.csv` and `.parquet` files a row of the file is one of T.

    Args:
        class_names: tables whose columns, and rows in a first column, have these names are brought into their order.

    Raises:
        UserError: if the file cannot be read, or the matrix is not `num_classes` square.
    """
    table, class_names = read_table(path), in_one_form(class_names)
    column = None if column is None else unicodedata.normalize("NFC", column)
    is_table = path.suffix.lower() in (".csv", ".tsv", ".parquet")
    matrix = _matrix_of(table, class_names) if is_table else _pick(table, table.columns, column)
    if matrix.shape != (num_classes, num_classes) or matrix.dtype.kind not in "iuf":
        raise UserError(
            f"data.noise.file: {path} must hold {num_classes} x {num_classes} numbers, got shape {matrix.shape} of "
            f"{matrix.dtype}; row i is the true class, column j the label it is given."
        )
    return matrix.astype(np.float64)


def _pick(table: Table, names: Sequence[str] | dict[str, np.ndarray], column: str | None) -> np.ndarray:
    if column is None and len(names) == 1:
        return table.columns[next(iter(names))]
    if column is None or column not in table.columns:
        what = "is not set" if column is None else f"is {column!r}"
        listed = list(table.columns)
        shown = ", ".join(map(repr, listed[:12])) + (", ..." if len(listed) > 12 else "")
        raise UserError(f"data.noise.column {what}, and {table.path} has {shown}; name one of them.")
    return table.columns[column]


def _pick_labels(table: Table, column: str | None, class_names: Sequence[str]) -> np.ndarray:
    """The column of labels; of a table with one column a class, the one-hot rows in the order of the classes."""
    names = [name for name in table.columns if not is_id(table, name)]
    one_hot = _one_hot_columns(table, names, class_names)
    if one_hot is None or (column is not None and column not in names):
        return _pick(table, names or table.columns, column)
    if column is not None:
        raise UserError(
            f"data.noise.column is {column!r}, which is one of {len(names)} one-hot columns of {table.path}; leave it "
            "out, and all of them are read."
        )
    return one_hot


def _one_hot_columns(table: Table, names: Sequence[str], class_names: Sequence[str]) -> np.ndarray | None:
    if len(names) != len(class_names):
        return None
    columns = {name: _numbers(table.columns[name]) for name in names}
    if any(values is None for values in columns.values()):
        return None
    if set(names) == set(class_names):
        names = class_names
    elif not table.bare and list(names) != [str(number) for number in range(len(names))]:
        return None
    values = np.stack([columns[name] for name in names], axis=1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return values if is_one_hot(values) else None


def _numbers(values: np.ndarray) -> Float[np.ndarray, " m"] | None:
    if values.ndim != 1 or values.dtype.kind not in "iufU":
        return None
    if values.dtype.kind == "U" and not all(map(is_number, values.tolist())):
        return None
    return values.astype(np.float64)


def _check_lengths(table: Table, count: int, names: Sequence[str | None]) -> None:
    """Arrays of .npz and .pt files may be of any length; those that are read together must be of one."""
    for name in names:
        shape = table.columns[str(name)].shape
        if shape[:1] != (count,):
            raise UserError(
                f"data.noise.file: {table.path} has {count} labels, and an array {name!r} of shape {shape} beside "
                "them; give both one entry an image."
            )


def _rows_in_order(table: Table, count: int, images: ImageSet, own: slice) -> Int[np.ndarray, " n"]:
    """Of each image that has a label in the file, the entry, where nothing but the order tells."""
    positions = images.positions[own]
    if count == len(positions):
        return np.arange(count)
    is_whole = np.array_equal(images.positions, np.arange(len(images)))
    published = PUBLISHED.get(str(images.source.get("name")), None if is_whole else int(positions.max()) + 1)
    if count == published and count > positions.max(initial=-1):
        return positions
    hint = ""
    if table.bare and count == len(positions) + 1:
        first = next(iter(table.columns.values()))[0]
        hint = f" (is the first line, {first}, the column's name? Then call it label)"
    elif count == len(positions) * len(images.class_names):
        hint = f" (are they one-hot rows of {len(images.class_names)}, flattened? Then save them as rows)"
    elif count == len(images):
        hint = " (images that are set apart for validation keep their own labels and have none in the file)"
    raise UserError(
        f"data.noise.file: {table.path} has {count} labels for {len(positions)} training images{hint}; give one an "
        "image, in their order, or add a column file or index that says which image each is for."
    )


def _check_numbering(
    observed: Int[np.ndarray, " n"], known: Int[np.ndarray, " n"], class_names: Sequence[str], path: Path
) -> None:
    """Wrong labels are spread over classes; nearly all of a class with one other label mean a renumbering."""
    num_classes = len(class_names)
    agreeing = float((observed == known).mean()) if len(known) else 1.0
    if agreeing >= 0.5 or len(known) < FEWEST_OF_A_CLASS * num_classes:
        return
    meant = _renumbering(observed, known, num_classes)
    renumbered = float((meant[observed] == known).mean())
    if renumbered < 0.9:
        return
    shifts = set(np.take((np.arange(num_classes) - meant) % num_classes, np.unique(observed)).tolist())
    if len(shifts) == 1:
        shift = min(shifts)
        how = "shifted by one" if shift in (1, num_classes - 1) else f"shifted by {shift}"
    else:
        label = next(int(label) for label in np.unique(observed) if meant[label] != label)
        how = f"given to other classes, such as {label} to {class_names[int(meant[label])]!r}"
    raise UserError(
        f"data.noise.file: the labels in {path} agree with the data set's own on {agreeing:.0%} of the images, but on "
        f"{renumbered:.0%} if its numbers are {how}; number the classes like the data set ({listed(class_names)}), or "
        "write their names."
    )


def _renumbering(
    observed: Int[np.ndarray, " n"], known: Int[np.ndarray, " n"], num_classes: int
) -> Int[np.ndarray, " c"]:
    """The class that each label most likely means, no two the same one: the most frequent pairs come first."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (observed, known), 1)
    meant = np.full(num_classes, -1)
    for place in np.argsort(-counts, axis=None, kind="stable").tolist():
        label, number = divmod(place, num_classes)
        if meant[label] < 0 and number not in meant:
            meant[label] = number
    return meant


def _check_order(observed: Int[np.ndarray, " n"], known: Int[np.ndarray, " n"], path: Path) -> None:
    """Labels that agree with the data set's own just as often as chance has it are those of other images."""
    count = len(known)
    size = int(max(observed.max(initial=0), known.max(initial=0))) + 1
    chance = float(np.bincount(observed, minlength=size) @ np.bincount(known, minlength=size)) / max(count, 1) ** 2
    agreeing = float((observed == known).mean())
    if count >= FEWEST_COMPARED and abs(agreeing - chance) <= 3 * np.sqrt(chance * (1 - chance) / count):
        raise UserError(
            f"data.noise.file: the labels in {path} agree with the data set's own on {agreeing:.0%} of the images, and "
            f"chance gives {chance:.0%}, so they stand in another order or number the classes otherwise; sort them "
            "like the data set, or add a column file or index that says which image each is for."
        )
    if agreeing < 0.5:
        say_once(f"the labels in {path} are other than the data set's own on {1 - agreeing:.0%} of the images")


def _matrix_of(table: Table, class_names: Sequence[str]) -> np.ndarray:
    columns = dict(table.columns)
    first = next(iter(columns))
    row_names = [unicodedata.normalize("NFC", str(value)) for value in columns[first].tolist()]
    numbers = [str(number) for number in range(len(row_names))]
    order = None
    if len(columns) == len(row_names) + 1 and (row_names == numbers or set(row_names) == set(class_names)):
        del columns[first]  # the rows' names
        order = None if row_names == numbers else [row_names.index(name) for name in class_names]
    names = list(class_names) if set(columns) == set(class_names) else list(columns)
    values = [_numbers(columns[name]) for name in names]
    if any(value is None for value in values):
        return np.stack([columns[name].astype(object) for name in names], axis=1)
    matrix = np.stack(values, axis=1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if table.bare and matrix.shape == (len(names) + 1, len(names)) and matrix[0].tolist() == list(range(len(names))):
        matrix = matrix[1:]  # numbers for names: pandas writes them
    return matrix if order is None else matrix[order]
