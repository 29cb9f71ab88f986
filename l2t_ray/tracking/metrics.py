"""The table of numbers a run leaves behind: one row a round and arm, as Parquet.

An arm is one method being trained (`l2t_dln`, `cross_entropy`, ...). `COLUMNS` says what every column means; an arm
leaves null what it does not have (cross-entropy has no hypergradient), and may add float columns of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from l2t_ray.files import replaced


class Column(NamedTuple):
    """One column of the metrics table."""

    name: str
    type: pa.DataType
    unit: str
    description: str


COLUMNS = (
    Column("arm", pa.string(), "", "name of the method being trained; with `round` it identifies the row"),
    Column("round", pa.int64(), "rounds", "index of the round, from 0"),
    Column("step", pa.int64(), "steps", "student steps taken so far, this round included"),
    Column("epoch", pa.int64(), "epochs", "division into training and validation part that the round belongs to"),
    Column("train_loss", pa.float64(), "loss", "loss the student descends, mean over the K steps of the round"),
    Column("val_error", pa.float64(), "nats", "validation error e after the K steps (cross-entropy by default)"),
    Column("test_accuracy", pa.float64(), "fraction", "test accuracy; null unless evaluated in this round"),
    Column("test_error", pa.float64(), "nats", "error e on the test set; null unless evaluated in this round"),
    Column("validation_accuracy", pa.float64(), "fraction", "accuracy on the whole validation part, likewise"),
    Column("validation_error", pa.float64(), "nats", "error e on the whole validation part, likewise"),
    Column(
        "reproduced",
        pa.float64(),
        "fraction",
        "memorised wrong labels: share of them that the student predicts, likewise",
    ),
    Column("weight_auc", pa.float64(), "1", "area under the ROC curve of a sample's weight as a sign of a wrong label"),
    Column("weight_right", pa.float64(), "1", "mean weight of the samples with right labels"),
    Column("weight_wrong", pa.float64(), "1", "mean weight of the samples with wrong labels"),
    Column("lr", pa.float64(), "1", "learning rate of the student"),
    Column("gradient_norm", pa.float64(), "loss", "||dL/dtheta||_2, mean over the K steps (Figure 1, definition b)"),
    Column(
        "logit_gradient_sum",
        pa.float64(),
        "loss",
        "sum of |dL/dz| over logits and minibatch, mean over the K steps (Figure 1, definition a)",
    ),
    Column("hypergradient_norm", pa.float64(), "nats", "||de/dphi||_2"),
    Column("snr", pa.float64(), "1", "signal of one round's hypergradient over its noise (core/signal_to_noise.py)"),
    Column("hypergradient_cosine", pa.float64(), "1", "cosine of the hypergradient and that of the round before"),
    Column("phi_step_norm", pa.float64(), "1", "||phi' - phi||_2, the teacher's step on the loss network"),
    Column("phi_step_max", pa.float64(), "1", "largest |phi' - phi| over the weights of the loss network"),
    Column("memory_weight", pa.float64(), "1", "how much the memory counts in the loss, as the round began"),
    Column("seconds", pa.float64(), "s", "wall time of the round, evaluation apart"),
    Column("seconds_data", pa.float64(), "s", "of `seconds`: making the round's batches"),
    Column("seconds_unroll", pa.float64(), "s", "of `seconds`: student steps"),
    Column("seconds_hypergradient", pa.float64(), "s", "of `seconds`: the way back through them (timing.py)"),
    Column("seconds_collectives", pa.float64(), "s", "of `seconds`: sums over workers, and waiting for the slowest"),
    Column("seconds_teacher", pa.float64(), "s", "of `seconds`: the teacher's answer, and waiting for it"),
    Column("images_per_second", pa.float64(), "images/s", "training images a second of the round"),
    Column("ended_at", pa.float64(), "s", "when the round ended, seconds since 1970"),
)

PARTS = tuple(c.name.removeprefix("seconds_") for c in COLUMNS if c.name.startswith("seconds_"))
"""What a round's time is divided into."""

TIMES = ("seconds", *(f"seconds_{part}" for part in PARTS), "images_per_second", "ended_at")
"""Columns that differ between two runs that are the same."""

SCHEMA = pa.schema(
    [
        pa.field(
            c.name,
            c.type,
            nullable=c.name not in ("arm", "round"),
            metadata={"unit": c.unit, "description": c.description},
        )
        for c in COLUMNS
    ]
)


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the table, sorted by arm (in order of first appearance) and round; a reader never sees half a file.

    Args:
        path: the Parquet file; it is replaced as a whole.
        rows: one mapping a round; of several with the same (arm, round) the last counts, since a resumed run
            repeats the rounds after its checkpoint. Missing columns are null, unknown ones must hold numbers.

    Raises:
        ValueError: if a row lacks `arm` or `round`, or an unknown column holds something other than a number.
    """
    path = Path(path)
    by_key = _last_by_key(rows)
    extra = sorted({name for row in by_key for name in row} - set(SCHEMA.names))
    for name in extra:
        for row in by_key:
            if not isinstance(row.get(name), Real | None):
                raise ValueError(
                    f"metrics column {name!r} must hold numbers, got {row[name]!r} in round {row['round']}."
                )
    schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in extra)])
    columns = [pa.array([_plain(row.get(f.name), f.type) for row in by_key], f.type) for f in schema]
    table = pa.Table.from_arrays(columns, schema=schema)

    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        pq.write_table(table, temporary)


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics table as plain mappings, None where a row has no value."""
    return pq.read_table(path).to_pylist()


def column(rows: Sequence[Mapping[str, Any]], arm: str, name: str) -> tuple[list[int], list[float]]:
    """The rounds in which an arm has a value in a column, and the values."""
    pairs = sorted((row["round"], row[name]) for row in rows if row["arm"] == arm and row.get(name) is not None)
    return [r for r, _ in pairs], [v for _, v in pairs]


def arms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arms of a table, in order of first appearance."""
    return list(dict.fromkeys(row["arm"] for row in rows))


def _last_by_key(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    by_key: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in rows:
        if row.get("arm") is None or row.get("round") is None:
            raise ValueError(f"a metrics row needs `arm` and `round`, got the columns {sorted(row)}.")
        by_key[row["arm"], int(row["round"])] = row
    order = {arm: i for i, arm in enumerate(dict.fromkeys(arm for arm, _ in by_key))}
    return [by_key[key] for key in sorted(by_key, key=lambda key: (order[key[0]], key[1]))]


def _plain(value: Any, kind: pa.DataType) -> Any:
    if value is None or pa.types.is_string(kind):
        return value
    return int(value) if pa.types.is_integer(kind) else float(value)
