"""The metrics that tasks share, and which of them a table is about: its headline.

Whoever reads final metrics or columns of the metrics table asks here what to look for and how to show it.
"""

from collections.abc import Mapping
from typing import Any

from l2t_ray.interfaces import Metric


def _one_in(num_classes: int) -> float:
    return 1 / num_classes


ACCURACY = Metric("accuracy", "accuracy", "acc", chance=_one_in)
CLASS_ACCURACY = Metric("class_accuracy", "class accuracy", chance=_one_in)
MIOU = Metric("miou", "mIoU")
AP = Metric("ap", "AP")
AP50, AP75 = Metric("ap50", "AP50"), Metric("ap75", "AP75")
_AP_BY_SIZE = [Metric(f"ap_{size}", f"AP of {size} boxes") for size in ("small", "medium", "large")]
ERROR = Metric("error", "error", unit="nats", factor=1, digits=4, higher_is_better=False)

HEADLINE = "headline"
"""The key of final metrics and of a study's results that names their headline."""
_KNOWN = {metric.name: metric for metric in (ACCURACY, CLASS_ACCURACY, MIOU, AP, AP50, AP75, *_AP_BY_SIZE, ERROR)}
_PREFIXES = ("best_", "selected_", "test_", "validation_", "val_")


def headline_of(numbers: Mapping[str, Any]) -> Metric:
    """The headline of final metrics or of a study's results; accuracy where they name none."""
    return metric_named(numbers.get(HEADLINE) or ACCURACY.name)


def metric_of(column: str) -> Metric:
    """What a column such as `best_test_accuracy` or `val_error` is a value of."""
    for prefix in _PREFIXES:
        column = column.removeprefix(prefix)
    return metric_named(column)


def metric_named(name: str) -> Metric:
    """The metric of that name; one that is not known here is shown as it is."""
    return _KNOWN.get(name) or Metric(name, name.replace("_", " "), unit="", factor=1, digits=4)


def column_label(column: str) -> str:
    """A column to read, with its unit: `best test accuracy [%]`."""
    metric = metric_of(column)
    return with_unit(column.removesuffix(metric.name).replace("_", " ") + metric.title, metric)


def with_unit(text: str, metric: Metric) -> str:
    return f"{text} [{metric.unit}]" if metric.unit else text


def formatted(value: float, metric: Metric) -> str:
    """A value with its unit: `76.83 %`."""
    return f"{metric.factor * value:.{metric.digits}f} {metric.unit}".rstrip()
