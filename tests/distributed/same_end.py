"""When two runs count as the same: every number equal to the last bit, timings apart."""

from pathlib import Path
from typing import Any

import torch

from l2t_ray.tracking.metrics import TIMES, read_rows
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore

LONGER = "training.num_rounds=40"
"""Of each arm: room for several failures."""


def last_checkpoint(directory: Path) -> Checkpoint:
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_cut(a: Checkpoint, b: Checkpoint) -> None:
    for part in ("arm", "round", "state", "teacher", "rows", "snapshots", "finished", "diverged"):
        assert same(getattr(a, part), getattr(b, part)), part


def assert_same_end(directory: Path, reference: Path) -> None:
    """The last checkpoints (students, loss network, teacher, metrics) are the same, and so are the metrics files,
    which hold every round of every arm exactly once."""
    checkpoint, expected = last_checkpoint(directory), last_checkpoint(reference)
    assert_same_cut(checkpoint, expected)
    rows, expected_rows = (read_rows(path / "metrics.parquet") for path in (directory, reference))
    assert same(rows, expected_rows)
    places = [(row["arm"], row["round"]) for row in rows]
    assert len(set(places)) == len(places) == len(checkpoint.rows)
