"""Checks the convergence section of the paper's supplement numerically, and draws it (docs/convergence.md)."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from l2t_ray.theory import convergence
from l2t_ray.tracking.mlflow import MlflowTracker

VERDICT = ("hessians", "violations_conclusion_1", "violations_sharp_bound", "worst_identity_error", "slope_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"), help="where the results go")
    parser.add_argument("--hessians", type=int, default=100_000, help="random Hessians to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the same tables from fewer draws")
    parser.add_argument("--no-mlflow", action="store_true", help="write the directory alone")
    args = parser.parse_args()

    # On stderr, so that the last line of stdout is the verdict alone.
    console = Console(stderr=True)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=convergence.NUM_PARTS)

        def announce(part: str) -> None:
            progress.update(bar, description=part, advance=1)

        summary = convergence.run(
            args.out, num_hessians=args.hessians, seed=args.seed, quick=args.quick, announce=announce
        )
    console.print(f"Tables and figures: {args.out}/")
    if not args.no_mlflow:
        tracker = MlflowTracker.start(
            directory=args.out, experiment="convergence", run_name=args.out.name, system_metrics=False
        )
        tracker.log_params({"hessians": args.hessians, "seed": args.seed, "quick": args.quick})
        tracker.log_rows([{"arm": "convergence", "round": 0, **{key: summary[key] for key in VERDICT}}])
        tracker.log_artifacts(*(str(path) for path in sorted(args.out.iterdir()) if not path.name.startswith("mlflow")))
        tracker.finish("FINISHED")
        console.print(f"look:  {tracker.ui_command()}")
    print(json.dumps({key: summary[key] for key in VERDICT}))


if __name__ == "__main__":
    main()
