"""Shows what a run came to, and what it left behind.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes

FILES = {
    "model*.safetensors": "trained models: l2t_ray.load_model",
    "loss.safetensors": "the learned loss: l2t_ray.LearnedLoss.load",
    "suspects*.csv": "training labels that look wrong: l2t suspects",
    "predictions*.csv": "what the models say of each test image",
    "metrics.parquet": "a row a round and method",
    "figures/*.png": "figures",
}


def main(description: str | None, argv: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """
    Args:
        description: what `--help` says.
        argv: the arguments; None: those of this process.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the directory of a run")
    arguments = parser.parse_args(argv)
    with exit_codes():
        show(arguments.run)


def show(directory: Path) -> None:
    """
    Raises:
        UserError: if there is no finished run in the directory.
    """
    import json

    from rich.console import Console

    from l2t_ray.interfaces import UserError
    from l2t_ray.tracking.screen import summary_table

    path = directory / "summary.json"
    if not path.is_file():
        if (directory / "config.yaml").is_file():
            raise UserError(f"the run in {directory} is not finished; --resume {directory} goes on with it.")
        raise UserError(f"{directory} holds no run (no summary.json); give the directory of a finished run.")
    try:
        summaries = json.loads(path.read_text(encoding="utf-8"))
        table = summary_table(summaries)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged; --resume {directory} writes it again.") from None
    console = Console()
    console.print(table)
    for pattern, what in FILES.items():
        found = sorted(found.relative_to(directory).as_posix() for found in directory.glob(pattern))
        if found:
            console.print(f"{', '.join(found)}: {what}", soft_wrap=True, highlight=False, markup=False)
