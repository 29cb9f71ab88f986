"""Every method of a configuration on the same noisy labels, with several seeds, and one table.

Imports nothing heavy, as `exit_codes`.
"""

import argparse
import re
from collections.abc import Sequence

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes
from l2t_ray.shipped import config_file


def main(description: str | None, argv: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """
    Args:
        description: what `--help` says.
        argv: the arguments; None: those of this process.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="a file or a name: its method and its controls are compared"
    )
    parser.add_argument("--only", type=_names, default=[], metavar="METHOD,...", help="train these alone")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], metavar="N,...", help="default: 0,1,2")
    parser.add_argument(
        "--budget",
        choices=("parity", "protocol"),
        default="parity",
        help="the same steps for all, or each paper's schedule (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args(argv)
    with exit_codes():
        from l2t_ray.studies.comparison import Comparison  # takes seconds, in which one may press Ctrl-C

        Comparison.of(
            config_file(arguments.config),
            arguments.overrides,
            seeds=arguments.seeds,
            budget=arguments.budget,
            only=arguments.only,
        ).run(quiet=arguments.quiet)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    names = _names(text)
    if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"\d{1,18}", name) for name in names):
        raise argparse.ArgumentTypeError(f"must be different whole numbers from 0 on, as in 0,1,2, got {text!r}")
    return [int(name) for name in names]
