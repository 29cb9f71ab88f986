"""What the numbers or colours of a mask file mean."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from l2t_ray.data.listed_files import check_class_name
from l2t_ray.data.pictures import Stored, shown
from l2t_ray.interfaces import UserError

IGNORE = 255
"""Of pixels that do not count, in all masks that are read from files; so there are at most 255 classes."""
OF_NO_CLASS = re.compile(r"void|ignored?|unlabell?ed|border|don'?t care", re.IGNORECASE)
"""Names in a class table for what does not count."""


@runtime_checkable
class Coding(Protocol):
    """Class numbers from what a mask file holds."""

    def classes(self, stored: Stored, where: str) -> UInt8[np.ndarray, "h w"]:
        """
        Raises:
            UserError: if a number or a colour is of no class; `where` is the file.
        """
        ...


class Numbered:
    """Each pixel has the number of its class (the `Coding` protocol). Palettes colour the numbers, and mean nothing,
    but must be one for all files.

    Args:
        num_classes: 0 to `num_classes - 1`; None: whatever there is.
        ignore: the number of pixels that do not count.
    """

    def __init__(self, num_classes: int | None, *, ignore: int = IGNORE):
        self._num_classes, self._ignore = num_classes, ignore
        self._colours: dict[int, tuple[tuple[int, ...], str]] = {}

    def classes(self, stored: Stored, where: str) -> UInt8[np.ndarray, "h w"]:
        if stored.values.ndim == 3:
            raise UserError(
                f"{where} has colours where class numbers are expected; write classes.csv with a line name,r,g,b for "
                "each class, or save numbers."
            )
        present = np.unique(stored.values)
        bound = IGNORE if self._num_classes is None else self._num_classes
        strange = present[((present < 0) | (present >= bound)) & (present != self._ignore)]
        if len(strange):
            raise UserError(
                f"{where} has the class number {int(strange[0])}, where 0 to {bound - 1} are classes and "
                f"{self._ignore} is ignored; correct it, or name all classes."
            )
        if stored.palette is not None:
            self._check_palette(present.tolist(), stored.palette, where)
        return np.where(stored.values == self._ignore, IGNORE, stored.values).astype(np.uint8)

    def _check_palette(self, present: Sequence[int], palette: UInt8[np.ndarray, "k 3"], where: str) -> None:
        for number in present:
            if number >= len(palette):
                raise UserError(f"{where} has the number {number}, for which its palette has no colour; save it anew.")
            colour = tuple(palette[number].tolist())
            other, there = self._colours.setdefault(number, (colour, where))
            if other != colour:
                raise UserError(
                    f"{where} has the colour {colour} for the number {number}, which is {other} in {there}, so numbers "
                    "differ from file to file; write classes.csv with a line name,r,g,b for each class, and colours "
                    "are read."
                )


class Coloured:
    """Each pixel has the colour of its class (the `Coding` protocol); grey numbers are colours too.

    Args:
        colours: class number by colour; `IGNORE` for what does not count.
        table: the file that says so, for messages.
    """

    def __init__(self, colours: Mapping[tuple[int, ...], int], table: Path):
        self._table = table
        self._keys, numbers = zip(*sorted((_key(colour), number) for colour, number in colours.items()), strict=True)
        self._numbers = np.array(numbers, dtype=np.uint8)

    def classes(self, stored: Stored, where: str) -> UInt8[np.ndarray, "h w"]:
        keys = _keys_of(stored, where)
        present, inverse = np.unique(keys, return_inverse=True)
        places = np.searchsorted(self._keys, present).clip(max=len(self._keys) - 1)
        strange = present[np.asarray(self._keys)[places] != present]
        if len(strange):
            key = int(strange[0])
            colour = (key >> 16, key >> 8 & 255, key & 255)
            is_grey = stored.values.ndim == 2 and stored.palette is None
            hint = " (are the numbers classes? Then write their names into classes.txt instead)" if is_grey else ""
            raise UserError(
                f"{where} has {int((keys == key).sum())} pixels of the colour {colour}, which is in no line of "
                f"{shown(self._table)}{hint}; add it there, as a class or as void, or correct the mask."
            )
        return self._numbers[places][inverse].reshape(keys.shape)


def _key(colour: Sequence[int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _keys_of(stored: Stored, where: str) -> np.ndarray:
    """Each pixel's colour as one number."""
    values = stored.values.astype(np.int64)
    if values.ndim == 3:
        return values @ np.array([1 << 16, 1 << 8, 1])
    if stored.palette is not None:
        if values.max() >= len(stored.palette):
            raise UserError(
                f"{where} has the number {values.max()}, for which its palette has no colour; save it anew."
            )
        return (stored.palette.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1]))[values]
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"{where} has grey values up to {values.max()}, where colours of 0 to 255 are expected.")
    return values * (1 << 16 | 1 << 8 | 1)


class Classes(NamedTuple):
    """The names of the classes (None: nobody gave any), and how masks are coded."""

    names: tuple[str, ...] | None
    coding: Coding


def classes_below(root: Path) -> Classes:
    """As `classes.csv` (name, r, g, b) or `classes.txt` (a name a line, by number) below `root` says; without either,
    masks have class numbers.

    Raises:
        UserError: if there are both, or one of them cannot be understood.
    """
    table, names = root / "classes.csv", root / "classes.txt"
    if table.exists() and names.exists():
        raise UserError(f"{shown(root)} has both classes.csv and classes.txt; leave one of them there.")
    if table.exists():
        return _from_table(table)
    if not names.exists():
        return Classes(None, Numbered(None))
    listed = [line.strip() for line in _text(names).splitlines() if line.strip()]
    _check_names(listed, names)
    return Classes(tuple(listed), Numbered(len(listed)))


def _from_table(path: Path) -> Classes:
    try:
        lines = [line for line in csv.reader(_text(path).splitlines()) if any(cell.strip() for cell in line)]
    except csv.Error as error:  # a NUL, or a line that has no end
        raise UserError(f"{shown(path)} is no table ({error}); write a line name,r,g,b for each class.") from None
    if lines and len(lines[0]) == 4 and not lines[0][1].strip().isdecimal():
        lines = lines[1:]  # the columns' names
    colours: dict[tuple[int, ...], int] = {}
    names: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line]
        if len(cells) != 4 or not all(map(_is_byte, cells[1:])):
            raise UserError(
                f"{shown(path)} has the line {','.join(line)!r}; expected name,r,g,b, colours from 0 to 255."
            )
        colour = tuple(map(int, cells[1:]))
        if colour in colours:
            raise UserError(f"{shown(path)} has the colour {colour} twice; give each class a colour of its own.")
        if OF_NO_CLASS.fullmatch(cells[0]):
            colours[colour] = IGNORE
        else:
            colours[colour] = len(names)
            names.append(cells[0])
    _check_names(names, path)
    return Classes(tuple(names), Coloured(colours, path))


def _is_byte(cell: str) -> bool:
    return cell.isdecimal() and len(cell) <= 9 and int(cell) < 256  # Python refuses thousands of digits


def _check_names(names: Sequence[str], path: Path) -> None:
    if not 2 <= len(names) <= IGNORE:
        raise UserError(f"{shown(path)} names {len(names)} classes; 2 to {IGNORE} are understood.")
    for name in names:
        check_class_name(name, path)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{shown(path)} names the class {twice!r} twice; give each a name of its own.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} cannot be read as text ({error}); save it as UTF-8.") from None
