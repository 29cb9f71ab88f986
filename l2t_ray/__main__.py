"""`l2t COMMAND`, or `python -m l2t_ray COMMAND`: everything that the jobs do, where there is no repository.

Imports nothing heavy before it knows the command.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from l2t_ray import __version__
from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes
from l2t_ray.shipped import shipped_names


class Command(NamedTuple):
    """Where a command's `main(description, argv, prog=...)` is, and what it does."""

    module: str
    what: str
    example: str


COMMANDS = {
    "train": Command(
        "train_command", "train a student with a learned loss, and beside it the controls", "--config digits"
    ),
    "compare": Command(
        "commands.compare", "every method of a configuration, several seeds, one table", "--config digits_noise40"
    ),
    "study": Command("studies.command", "an experiment, varied over grids and seeds", "--config studies/example"),
    "report": Command("commands.write_report", "all studies that MLflow knows, on one page", ""),
    "suspects": Command("commands.list_suspects", "training labels of a run that look wrong", "runs/NAME --top 50"),
    "show": Command("commands.show_run", "what a run came to, and what it left behind", "runs/NAME"),
    "convergence": Command("commands.check_convergence", "the paper's convergence section, checked", "--quick"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
        argv: the arguments; None: those of this process.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(prog="l2t", description=_description(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"l2t_ray {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="`l2t COMMAND --help` says more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    if not given:
        parser.error("give a command")
    name = parser.parse_args(given[:1]).command
    command = COMMANDS[name]
    with exit_codes():  # a module may take seconds to import, or lack what an extra brings
        run: Callable[..., None] = import_module(f"l2t_ray.{command.module}").main
    prog = f"l2t {name}"
    description = f"{command.what[0].upper()}{command.what[1:]}.\n\n{prog} {command.example}"
    run(description, given[1:], prog=prog)


def _description() -> str:
    commands = "\n".join(f"  {name:<12} {command.what}" for name, command in COMMANDS.items())
    names = ", ".join(name for name in shipped_names() if "/" not in name)
    return f"Learn the loss function while you train the model.\n\n{commands}\n\nconfigurations by name: {names}"


if __name__ == "__main__":
    main()
