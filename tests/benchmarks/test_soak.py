"""The soak's book-keeping: which rounds were done again, and when a run counts as recovered. It kills nothing here."""

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks/soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("benchmark_soak", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_that_come_again_are_counted_and_are_a_recovery(soak, tmp_path):
    progress = soak.Progress(tmp_path / "rounds")
    assert not progress.update()
    progress.path.write_text("0\n1\n2\n3\n4")  # the last line is still being written
    assert progress.update() and progress.highest == 3 and not progress.fell_back
    struck = progress.arrived
    assert not soak.recovered(progress, struck)  # nothing new
    with progress.path.open("a") as file:
        file.write("\n5\n")
    assert not soak.recovered(progress, struck)  # finished before the blow, most likely
    with progress.path.open("a") as file:
        file.write("3\n4\n5\n6\n")
    assert soak.recovered(progress, struck)
    assert progress.rounds_redone == 3 and progress.highest == 6


def test_only_timings_may_differ(soak):
    row = {"round": 1, "val_error": 0.25, "seconds": 1.0}
    assert soak.is_same([row, {"phi": torch.ones(2)}], [row | {"seconds": 2.0}, {"phi": torch.ones(2)}])
    assert not soak.is_same([row], [row | {"val_error": 0.2500001}])
    assert not soak.is_same({"phi": torch.ones(2)}, {"phi": torch.tensor([1.0, 1.0000001])})
