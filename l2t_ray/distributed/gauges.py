"""The latest round as gauges that Ray collects: every node serves them to Prometheus, the dashboard charts them."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from l2t_ray.headline import ACCURACY
from l2t_ray.interfaces import Metric
from l2t_ray.timing import PARTS

COLUMNS = {
    "round": "index of the latest round",
    "train_loss": "loss the student descends",
    "val_error": "validation error after the round, nats",
    "images_per_second": "training images a second",
}


class Gauges:
    """`ray_l2t_ray_<column>{run, arm}`, and `ray_l2t_ray_round_seconds{run, arm, part}` for where the time goes.

    The columns are `COLUMNS` and the headline on the test set, as the metrics table has it.
    """

    def __init__(self, run: str, headline: Metric = ACCURACY):
        columns = COLUMNS | {headline.on_test: f"latest test {headline.title}, as in the metrics table"}
        self._gauges = {
            name: _gauge(f"l2t_ray_{name}", description, run, "arm") for name, description in columns.items()
        }
        self._seconds = _gauge("l2t_ray_round_seconds", "seconds of the latest round by part", run, "arm", "part")

    def show(self, row: Mapping[str, Any]) -> None:
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(row[name], tags={"arm": row["arm"]})
        for part in PARTS:
            self._seconds.set(row[f"seconds_{part}"], tags={"arm": row["arm"], "part": part})


def _gauge(name: str, description: str, run: str, *tags: str) -> Gauge:
    gauge = Gauge(name, description, ("run", *tags))
    gauge.set_default_tags({"run": run})
    return gauge
