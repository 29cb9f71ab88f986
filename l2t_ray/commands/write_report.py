"""Gathers the studies and runs that MLflow knows into one page, report/index.html, and Markdown.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
import os
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
    parser.add_argument("--out", type=Path, default=Path("report"), help="where the page goes (default: report)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="whose mlflow.db is read (default: runs)")
    parser.add_argument("--uri", help="an MLflow store instead (default: MLFLOW_TRACKING_URI, if set)")
    parser.add_argument("--experiment", default="l2t_ray", help="MLflow experiment (default: l2t_ray)")
    arguments = parser.parse_args(argv)
    with exit_codes():
        from l2t_ray.interfaces import UserError
        from l2t_ray.reports.page import write_page  # takes seconds, in which one may press Ctrl-C
        from l2t_ray.studies.tracked_runs import gather_runs
        from l2t_ray.studies.tracked_studies import gather

        store = arguments.runs.resolve() / "mlflow.db"
        uri = arguments.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and not store.exists():
            raise UserError(f"there is no {store}; run a job first, or name an MLflow store with --uri.")
        address = uri or f"sqlite:///{store}"
        studies, runs = gather(address, arguments.experiment), gather_runs(address, arguments.experiment)
        if not studies and not runs:
            raise UserError(f"no study and no run with results in {uri or store}; run jobs/train.py or another first.")
        page = write_page(arguments.out, studies, runs)[0]
        print(f"{len(studies)} studies and {len(runs)} runs in {page.resolve()}")
