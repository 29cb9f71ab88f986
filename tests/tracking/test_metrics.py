"""The metrics table: round trip, one row for each (arm, round), and nothing half-written."""

import pyarrow.parquet as pq
import pytest

from l2t_ray.tracking import metrics


def test_round_trip_keeps_types_nulls_and_extra_columns(tmp_path):
    path = tmp_path / "run" / "metrics.parquet"
    rows = [
        {"arm": "l2t_dln", "round": 0, "step": 5, "val_error": 1.5, "hypergradient_norm": 0.25},
        {"arm": "cross_entropy", "round": 0, "step": 5, "val_error": 2, "weight_entropy": 0.5},
    ]
    metrics.write_rows(path, rows)
    back = metrics.read_rows(path)
    assert [row["arm"] for row in back] == ["l2t_dln", "cross_entropy"]
    assert back[0]["hypergradient_norm"] == 0.25 and back[1]["hypergradient_norm"] is None
    assert back[1]["weight_entropy"] == 0.5 and isinstance(back[1]["val_error"], float)
    schema = pq.read_schema(path)
    assert schema.names == [*metrics.SCHEMA.names, "weight_entropy"]
    assert schema.field("seconds").metadata[b"unit"] == b"s"
    assert [p.name for p in path.parent.iterdir()] == ["metrics.parquet"]


def test_each_round_once_and_the_last_wins(tmp_path):
    path = tmp_path / "metrics.parquet"
    first = [{"arm": "a", "round": r, "val_error": 0.0} for r in range(5)]
    again = [{"arm": "a", "round": r, "val_error": 1.0} for r in (4, 3, 5)]
    metrics.write_rows(path, first)
    metrics.write_rows(path, [*metrics.read_rows(path), *again])
    assert [(row["round"], row["val_error"]) for row in metrics.read_rows(path)] == [
        (0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 1.0),
    ]  # fmt: skip


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.parquet"
    metrics.write_rows(path, [{"arm": "a", "round": 0}])

    def fail(table, where):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(metrics.pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        metrics.write_rows(path, [{"arm": "a", "round": 1}])
    monkeypatch.undo()
    assert [row["round"] for row in metrics.read_rows(path)] == [0]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.parquet"]


def test_no_rows_give_an_empty_table(tmp_path):
    metrics.write_rows(tmp_path / "m.parquet", [])
    assert metrics.read_rows(tmp_path / "m.parquet") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"round": 1}, "needs `arm` and `round`"),
        ({"arm": "a", "round": 1, "note": "x"}, "'note' must hold numbers, got 'x'"),
    ],
)
def test_mistakes_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        metrics.write_rows(tmp_path / "m.parquet", [row])


def test_columns_of_an_arm_skip_missing_values():
    rows = [
        {"arm": "a", "round": 2, "x": 1.0},
        {"arm": "b", "round": 0},
        {"arm": "a", "round": 0, "x": 3.0},
        {"arm": "a", "round": 1},
    ]
    assert metrics.arms(rows) == ["a", "b"]
    assert metrics.column(rows, "a", "x") == ([0, 2], [3.0, 1.0])
