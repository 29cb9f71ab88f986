"""Shows which training labels of a run look wrong, the worst first.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes


def main(description: str | None, argv: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """
    Args:
        description: what `--help` says.
        argv: the arguments; None: those of this process.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a run")
    parser.add_argument("--arm", help="one of its controls; default: the method itself")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many to show (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with exit_codes():
        show(arguments.run, arm=arguments.arm, top=arguments.top)


def show(directory: Path, *, arm: str | None, top: int) -> None:
    """
    Raises:
        UserError: if the run has no such list.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from l2t_ray.interfaces import UserError

    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}.")
    path = directory / ("suspects.csv" if arm is None else f"suspects-{arm}.csv")
    if not path.is_file():
        there = ", ".join(sorted(found.name for found in directory.glob("suspects*.csv")))
        why = "only a finished run of a method with a memory of its images has one, such as method=recommended"
        raise UserError(f"{directory} holds no {path.name}; {f'there is {there}: see --arm' if there else why}.")
    with path.open(newline="", encoding="utf-8") as file:
        columns, *lines = list(csv.reader(file))
    table = Table(*columns)
    for line in lines[:top]:
        table.add_row(*map(Text, line))  # a class name may look like markup
    console = Console()
    console.print(table)
    shown = f"{min(top, len(lines))} of {len(lines)} training labels; all are ranked in {path}"
    console.print(Text(shown), soft_wrap=True)
