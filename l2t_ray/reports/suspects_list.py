"""The list of labels that look wrong, as a run has written it: what the run's end and `l2t suspects` show of it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from l2t_ray.interfaces import UserError


class Worst(NamedTuple):
    """The most suspicious labels of a list, and how long it is.

    Attributes:
        lines: a mapping from heading to entry for each label that is shown.
        num_suspected: the labels in whose place another class is suggested.
        num_labels: all that are ranked.
    """

    lines: Sequence[Mapping[str, str]]
    num_suspected: int
    num_labels: int


def worst(path: Path, count: int) -> Worst:
    """The most suspicious labels of a written list, at most `count`: of those in whose place another class is
    suggested.

    Raises:
        UserError: if the file is no such list.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            ranked = list(csv.DictReader(file))
        if not ranked:
            raise ValueError("a list of nothing")
        suspected = [line for line in ranked if line["suggested_label"] != line["given_label"]]
    except (KeyError, ValueError, csv.Error):
        raise UserError(f"{path} is damaged; --resume {path.parent} writes it again.") from None
    return Worst(suspected[:count], len(suspected), len(ranked))


def worst_table(lines: Sequence[Mapping[str, str]]) -> Table:
    """A table of labels that look wrong, from at least one line of `suspects.csv`."""
    table = Table(title="the labels that look most wrong", header_style="bold", title_justify="left")
    for heading in lines[0]:
        table.add_column(heading.replace("_", " "), justify="right")
    for line in lines:
        table.add_row(*(Text(entry or "") for entry in line.values()))  # names of classes and files may hold brackets
    return table
