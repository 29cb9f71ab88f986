"""Columns and final metrics by their headline."""

import pytest

from l2t_ray.headline import ACCURACY, AP, ERROR, MIOU, column_label, formatted, headline_of, metric_named, metric_of


@pytest.mark.parametrize(
    ("column", "metric", "label"),
    [
        ("test_accuracy", ACCURACY, "test accuracy [%]"),
        ("best_test_accuracy", ACCURACY, "best test accuracy [%]"),
        ("val_error", ERROR, "val error [nats]"),
        ("selected_test_miou", MIOU, "selected test mIoU [%]"),
        ("validation_ap", AP, "validation AP [%]"),
        ("best_test_word_count", metric_named("word_count"), "best test word count"),
    ],
)
def test_a_column_says_what_it_is_of(column, metric, label):
    assert metric_of(column) == metric and column_label(column) == label


def test_numbers_that_name_no_headline_are_about_accuracy():
    assert headline_of({}) is ACCURACY and headline_of({"headline": "miou"}) is MIOU


def test_values_are_shown_in_their_unit():
    assert formatted(0.76834, ACCURACY) == "76.83 %" and formatted(1.25, ERROR) == "1.2500 nats"
    assert formatted(3.0, metric_named("word_count")) == "3.0000"
