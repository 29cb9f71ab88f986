"""Every method of a configuration on the same noisy labels, with several seeds, and one table.

python jobs/noisy_labels.py --config configs/cifar10_noise.yaml ray.use_gpu=true
python jobs/noisy_labels.py --config configs/cifar10_noise_small.yaml --only cross_entropy,l2t_dln-trusted --seeds 0,1
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import exit_codes


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="what to compare: its method and its controls")
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
            arguments.config,
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


if __name__ == "__main__":
    main()
