"""The command lines of jobs that train: one experiment, or the rest of one.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes
from l2t_ray.shipped import config_file

if TYPE_CHECKING:
    from l2t_ray.run import Experiment

EXACT = 1e-9
"""Largest relative error in float64 that is rounding."""
DIFFERENCES = 0.02
"""Largest relative error of finite differences."""


def main(
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    config: str = "configs/digits.yaml",
    prog: str | None = None,
) -> None:
    """
    Args:
        description: what the job says of itself.
        argv: the arguments; None: those of this process.
        config: the experiment where none is named.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=config, help="experiment to run: a file or a name (default: %(default)s)")
    parser.add_argument("--resume", metavar="RUN_DIR", help="go on with an interrupted run instead")
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")
    parser.add_argument("--profile", action="store_true", help="trace two rounds of each arm, to look at in Perfetto")
    parser.add_argument(
        "--check-hypergradient", action="store_true", help="first compare the engine with naive autograd in float64"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)  # options may stand among the overrides
    overrides = [*arguments.overrides, *(["tracking.profile=true"] if arguments.profile else [])]
    with exit_codes():
        from l2t_ray.run import Experiment  # takes seconds, in which one may press Ctrl-C

        if arguments.resume is not None:
            experiment = Experiment.resume(arguments.resume, overrides)
        else:
            experiment = Experiment.from_yaml(config_file(arguments.config), overrides)
        if arguments.check_hypergradient:
            check_hypergradient(experiment, quiet=arguments.quiet)
        experiment.run(quiet=arguments.quiet)


def check_hypergradient(experiment: "Experiment", *, quiet: bool) -> None:
    """Prints the engine's errors; ends the job with code 1 if one that claims to be exact is not."""
    errors, is_exact = experiment.check_hypergradient()
    report = "hypergradient, relative error: " + ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
    if is_exact and not errors["float64"] < EXACT:
        raise SystemExit(f"{report}; an exact engine must stay below {EXACT:g} in float64.")
    if not errors["finite differences"] < DIFFERENCES:
        raise SystemExit(f"{report}; autograd itself must stay below {DIFFERENCES:g} of finite differences.")
    if not quiet:
        print(report if is_exact else f"{report} (an approximation)")
