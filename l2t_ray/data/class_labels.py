"""What the labels in a file mean: class names, class numbers, or one-hot rows, and nothing that is only nearly one."""

import difflib
import logging
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int

from l2t_ray.data.columns import Table, in_one_form, is_number
from l2t_ray.interfaces import UserError

MISSING = ("", "nan", "na", "n/a", "none", "null", "<na>")
"""How spreadsheets and libraries write that there is no label, in lower case."""

_LOG = logging.getLogger(__name__)


def as_classes(values: np.ndarray, class_names: Sequence[str], table: Table) -> Int[np.ndarray, " m"]:
    """The class number of each entry of a column.

    Text is class names where all of it is, and else numbers. Numbers are class numbers, but where all classes are
    called by numbers they are these names: with the classes 1 and 2, the label 1 is the first class.

    Args:
        values: a column of `table`: one label an entry, or a one-hot row of as many numbers as there are classes.

    Raises:
        UserError: if an entry is no class or may mean two; the message names the first one.
    """
    values, class_names = np.asarray(values), in_one_form(class_names)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.shape[1] == len(class_names):
        return _of_one_hot(values, table)
    if values.ndim != 1:
        _refuse(
            table,
            f"has an array of shape {values.shape}; one label an image is needed: an array of one axis, or exact "
            f"one-hot rows of {len(class_names)} numbers",
        )
    match values.dtype.kind:
        case "i" | "u" | "f":
            return _of_numbers(values, class_names, table)
        case "U" | "S" | "O" | "T":
            return _of_texts([_text(value) for value in values.tolist()], class_names, table)
        case "b":
            _refuse(table, "has true and false for labels, which may as well be a mask; save class numbers")
    _refuse(table, f"has labels of the type {values.dtype}; save class numbers or class names")


def say_once(text: str) -> None:
    """Notes it where somebody listens, once: a file is read several times in a run."""
    if _LOG.isEnabledFor(logging.INFO):
        _say(text)


@cache
def _say(text: str) -> None:
    _LOG.info(text)


def is_one_hot(values: np.ndarray) -> bool:
    """Whether each row has a single 1, and else zeros."""
    return bool(values.dtype.kind in "iufb" and ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())


def _of_one_hot(values: np.ndarray, table: Table) -> Int[np.ndarray, " m"]:
    if not is_one_hot(values):
        _refuse(
            table,
            f"has {values.shape[1]} numbers an image that are not one-hot (a single 1, and else 0), such as "
            f"probabilities; give one label an image, for instance by argmax(axis=1)",
        )
    say_once(f"{table.path} has one-hot rows: the place of the 1 is the class")
    return values.argmax(axis=1).astype(np.int64)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return "" if value is None else unicodedata.normalize("NFC", str(value).strip())


def _of_texts(texts: Sequence[str], class_names: Sequence[str], table: Table) -> Int[np.ndarray, " m"]:
    numbers = {name.strip(): number for number, name in enumerate(class_names)}
    strange = [row for row, text in enumerate(texts) if text not in numbers]
    if not strange:
        return np.array([numbers[text] for text in texts], dtype=np.int64)
    missing = [row for row in strange if texts[row].lower() in MISSING]
    if missing:
        _refuse_missing(table, missing[0], texts[missing[0]])
    if all(map(is_number, texts)):
        return _of_numbers(np.array([float(text) for text in texts]), class_names, table)
    row = next((row for row in strange if not is_number(texts[row])), strange[0])
    near = difflib.get_close_matches(texts[row].lower(), [name.lower() for name in numbers], n=1)
    meant = [name for name in numbers if near and name.lower() == near[0]]
    _refuse(
        table,
        f"has the label {texts[row][:60]!r}, which is no class of the data set ({listed(class_names)}), in "
        f"{table.where(row)}; {f'is {meant[0]!r} meant? U' if meant else 'u'}se names or numbers, not both",
    )


def _of_numbers(values: np.ndarray, class_names: Sequence[str], table: Table) -> Int[np.ndarray, " m"]:
    if values.dtype.kind == "f":
        _check_whole(values, len(class_names), table)
    for row in _first(values < 0):
        _refuse(
            table,
            f"has {values[row]:g} in {table.where(row)}, and labels must be whole numbers from 0; -1 often stands for "
            "no label: label those images or leave them out",
        )
    called = {float(name): number for number, name in enumerate(class_names) if is_number(name.strip())}
    if len(called) == len(class_names):
        return _of_names(values, called, class_names, table)
    for row in _first(values >= len(class_names)):
        _refuse(
            table,
            f"has the label {int(values[row])}, and the data set has classes 0 to {len(class_names) - 1} "
            f"({listed(class_names)}), in {table.where(row)}; number them so, or use their names",
        )
    for value, number in called.items():
        if value != number and (values == value).any():
            _refuse(
                table,
                f"has the label {value:g}, which is the name of class {number} and the number of class "
                f"{class_names[int(value)]!r}; rename the class, or write names alone",
            )
    return values.astype(np.int64)


def _of_names(
    values: np.ndarray, called: dict[float, int], class_names: Sequence[str], table: Table
) -> Int[np.ndarray, " m"]:
    """Of numbers, where all classes are called by numbers."""
    names = np.array(sorted(called))
    places = np.searchsorted(names, values).clip(max=len(names) - 1)
    for row in _first(names[places] != values):
        in_order = list(called.items()) == [(number, number) for number in range(len(called))]
        what = f"classes 0 to {len(called) - 1}" if in_order else f"the classes called {listed(class_names)}"
        _refuse(
            table,
            f"has the label {values[row]:g}, and the data set has {what}, in {table.where(row)}; labels are read as "
            "these names, so mend those that are none",
        )
    return np.array([called[name] for name in names], dtype=np.int64)[places]


def _check_whole(values: np.ndarray, num_classes: int, table: Table) -> None:
    for row in _first(np.isnan(values)):
        _refuse_missing(table, row, "NaN")
    for row in _first(~np.isfinite(values) | (values != np.floor(values))):
        _refuse(
            table,
            f"has {values[row]:g} in {table.where(row)}, and labels must be whole numbers from 0; give one class an "
            "image",
        )
    if num_classes > 2 ** (np.finfo(values.dtype).nmant + 1):
        _refuse(table, f"has labels of {values.dtype}, which cannot tell {num_classes} classes apart; save integers")


def _first(is_wrong: np.ndarray) -> list[int]:
    """The first row that is, if there is one."""
    return np.flatnonzero(is_wrong)[:1].tolist()


def _refuse_missing(table: Table, row: int, text: str) -> NoReturn:
    _refuse(
        table,
        f"has no label in {table.where(row)} ({text!r}), and labels must be whole numbers from 0 or class names; label "
        "that image or leave it out",
    )


def _refuse(table: Table, problem: str) -> NoReturn:
    raise UserError(f"data.noise.file: {table.path} {problem}.")


def listed(names: Sequence[str]) -> str:
    """The first ones, for messages."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
