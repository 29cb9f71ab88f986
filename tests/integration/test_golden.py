"""The first rounds of the main job, number for number.

A refactor leaves tests/golden/digits.txt as it is; a change of the mathematics rewrites it, with

    python tests/integration/test_golden.py

and says why in the commit.
"""

from pathlib import Path

import pytest
import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration

GOLDEN = Path(__file__).parents[1] / "golden" / "digits.txt"
COLUMNS = ("train_loss", "val_error", "gradient_norm", "hypergradient_norm", "phi_step_norm")


def first_rounds() -> list[dict]:
    config = configuration.load(
        Path("configs/digits.yaml"), ["ray.enabled=false", "training.num_rounds=6", "training.decay=constant"]
    )
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    return run.train(start=None, store=None, on_row=lambda row: None).rows


def as_text(rows: list[dict]) -> str:
    header = " ".join(("arm", "round", *COLUMNS))
    lines = [
        " ".join((row["arm"], str(row["round"]), *(f"{row[name]:.6e}" if name in row else "-" for name in COLUMNS)))
        for row in rows
    ]
    return "\n".join((header, *lines)) + "\n"


def test_the_first_rounds_are_what_they_were():
    """Within 1e-3: other processors and versions of PyTorch sum in another order, and training amplifies that."""
    header, *expected = GOLDEN.read_text().splitlines()
    rows = first_rounds()
    assert header.split() == ["arm", "round", *COLUMNS]
    assert len(rows) == len(expected)
    for row, line in zip(rows, expected, strict=True):
        arm, index, *numbers = line.split()
        assert (row["arm"], row["round"]) == (arm, int(index))
        for name, number in zip(COLUMNS, numbers, strict=True):
            if number == "-":
                assert name not in row
            else:
                assert row[name] == pytest.approx(float(number), rel=1e-3), f"{name} of {arm} in round {index}"


if __name__ == "__main__":
    GOLDEN.write_text(as_text(first_rounds()))
