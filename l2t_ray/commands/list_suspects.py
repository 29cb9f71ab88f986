"""Shows which training labels of a run look wrong, the worst first.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
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
    from rich.text import Text

    from l2t_ray.interfaces import UserError
    from l2t_ray.reports.suspects_list import worst, worst_table

    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}.")
    path = directory / ("suspects.csv" if arm is None else f"suspects-{arm}.csv")
    if not path.is_file():
        there = ", ".join(sorted(found.name for found in directory.glob("suspects*.csv")))
        why = "only a finished run of a method with a memory of its images has one, such as method=recommended"
        raise UserError(f"{directory} holds no {path.name}; {f'there is {there}: see --arm' if there else why}.")
    found, console = worst(path, top), Console()
    if found.lines:
        console.print(worst_table(found.lines))
    shown = (
        f"{len(found.lines):,} of {found.num_suspected:,} labels in whose place another class is suggested; "
        f"all {found.num_labels:,} training labels are ranked in {path}"
    )
    console.print(Text(shown), soft_wrap=True)
