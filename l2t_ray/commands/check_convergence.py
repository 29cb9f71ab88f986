"""Checks the convergence section of the paper's supplement numerically, and draws it (docs/convergence.md).

Imports nothing heavy, as `exit_codes`.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes

VERDICT = ("hessians", "violations_conclusion_1", "violations_sharp_bound", "worst_identity_error", "slope_error")


def main(description: str | None, argv: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """
    Args:
        description: what `--help` says.
        argv: the arguments; None: those of this process.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"), help="where the results go")
    parser.add_argument("--hessians", type=_count, default=100_000, help="random Hessians to draw")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--quick", action="store_true", help="the same tables from fewer draws")
    parser.add_argument("--no-mlflow", action="store_true", help="write the directory alone")
    arguments = parser.parse_args(argv)
    with exit_codes():
        check(arguments)


def check(arguments: argparse.Namespace) -> None:
    """Draws, checks, writes and says what came of it."""
    from l2t_ray.extras import Need, need

    needs = [Need("matplotlib", "drawing figures")]
    if not arguments.no_mlflow:
        needs.append(Need("mlflow", "noting results", "give --no-mlflow"))
    need(*needs)
    from rich.console import Console  # here, for imports take seconds in which one may press Ctrl-C
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from l2t_ray.theory import convergence

    arguments.out.mkdir(parents=True, exist_ok=True)
    # On stderr, so that the last line of stdout is the verdict alone.
    console = Console(stderr=True)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=convergence.NUM_PARTS)

        def announce(part: str) -> None:
            progress.update(bar, description=part, advance=1)

        summary = convergence.run(
            arguments.out,
            num_hessians=arguments.hessians,
            seed=arguments.seed,
            quick=arguments.quick,
            announce=announce,
        )
    console.print(f"Tables and figures: {arguments.out}/")
    if not arguments.no_mlflow:
        console.print(f"view:  {tracked(arguments, summary)}")
    print(json.dumps({key: summary[key] for key in VERDICT}))


def tracked(arguments: argparse.Namespace, summary: Mapping[str, Any]) -> str:
    """Notes it in MLflow; gives the command to view it."""
    from l2t_ray.tracking.mlflow import MlflowTracker

    out = arguments.out
    tracker = MlflowTracker.start(directory=out, experiment="convergence", run_name=out.name, system_metrics=False)
    tracker.log_params({"hessians": arguments.hessians, "seed": arguments.seed, "quick": arguments.quick})
    tracker.log_rows([{"arm": "convergence", "round": 0, **{key: summary[key] for key in VERDICT}}])
    tracker.log_artifacts(*(str(path) for path in sorted(out.iterdir()) if not path.name.startswith("mlflow")))
    tracker.finish("FINISHED")
    return tracker.ui_command()


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999,999,999, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)
