"""The table of a comparison, by hand-computed cells."""

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest

from l2t_ray.headline import ACCURACY, ERROR, MIOU
from l2t_ray.reports import comparison_table as table
from l2t_ray.reports.comparison_table import TrialResult
from l2t_ray.reports.paper_accuracies import noisy_labels
from l2t_ray.tracking.metrics import write_rows

RESULTS = [
    TrialResult("cross_entropy", 0, {"test_accuracy": 0.40, "best_test_accuracy": 0.50, "seconds": 10.0}),
    TrialResult("cross_entropy", 1, {"test_accuracy": 0.42, "best_test_accuracy": 0.52, "seconds": 20.0}),
    TrialResult("gce", 0, {"test_accuracy": None, "best_test_accuracy": 0.3, "diverged": True}),
    TrialResult("l2t_dln", 0, {"test_accuracy": 0.6, "best_test_accuracy": 0.6, "seconds": 5.0}),
]
ARMS = ["cross_entropy", "mw_net", "gce", "l2t_dln"]


def cells(text):
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]


def test_ours_and_the_papers_stand_apart():
    lines = cells(table.as_markdown(table.entries(RESULTS, ARMS), noisy_labels("cifar10", 0.4)))
    assert lines[0] == ["method", "final [%]", "best seen [%]", "time [s]", "diverged", "paper [%]", "source"]
    assert lines[2] == [
        "cross_entropy", "41.00 ± 1.41 (2)", "51.00 ± 1.41 (2)", "15 ± 7 (2)", "0 of 2", "70.77",
        "paper (copied there from Shu et al. 2019)",
    ]  # fmt: skip
    assert lines[3] == ["gce", "–", "–", "–", "1 of 1", "–", "–"]
    assert lines[4][:2] == ["l2t_dln", "60.00 (1)"] and len(lines) == 5


def test_without_published_figures_there_are_no_such_columns():
    lines = cells(table.as_markdown(table.entries(RESULTS[:2], ARMS), {}))
    assert lines[0] == ["method", "final [%]", "best seen [%]", "time [s]"]


def test_beside_true_labels_the_table_says_how_much_of_the_gap_a_method_closes(tmp_path):
    """Cross-entropy 41, true labels 61: 60 is 95 % of the way."""
    reference = TrialResult("true_labels", 0, {"test_accuracy": 0.61})
    worse = TrialResult("mw_net", 0, {"test_accuracy": 0.31})
    lines = table.entries([*RESULTS, reference, worse], [*ARMS, "true_labels"])
    rows = cells(table.as_markdown(lines, {}))
    column = rows[0].index("of the gap closed [%]")
    assert [row[column] for row in rows[2:]] == ["0", "-50", "–", "95", "100"]
    table.write_table(tmp_path / "t.parquet", lines, {})
    shares = [row["gap_closed"] for row in parquet.read_table(tmp_path / "t.parquet").to_pylist()]
    assert shares[2] is None and [round(x, 3) for x in shares if x is not None] == [0, -0.5, 0.95, 1]


@pytest.mark.parametrize(("reference", "headline"), [(0.41, ACCURACY), (0.3, ACCURACY), (0.61, ERROR)])
def test_where_wrong_labels_cost_nothing_there_is_no_gap_to_close(reference, headline):
    results = [
        TrialResult(arm, 0, {headline.on_test: value})
        for arm, value in (("cross_entropy", 0.41), ("true_labels", reference))
    ]
    assert table.shares_of_gap(table.entries(results, ["cross_entropy", "true_labels"], headline), headline) == {}


def test_a_gap_within_the_spread_over_seeds_is_none():
    results = [
        TrialResult(arm, seed, {"test_accuracy": value})
        for arm, values in (("cross_entropy", (0.40, 0.44)), ("true_labels", (0.43, 0.45)))
        for seed, value in enumerate(values)
    ]
    assert table.shares_of_gap(table.entries(results, ["cross_entropy", "true_labels"])) == {}


def test_the_table_is_about_the_headline(tmp_path):
    result = TrialResult("l2t_dln", 0, {"test_miou": 0.5, "best_test_miou": 0.55, "test_error": 1.5, "seconds": 5.0})
    lines = table.entries([result], ARMS, MIOU)
    assert cells(table.as_markdown(lines, {}, MIOU))[2] == ["l2t_dln", "50.00 (1)", "55.00 (1)", "5 (1)"]
    table.write_table(tmp_path / "t.parquet", lines, {}, MIOU)
    (row,) = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert row["test_miou_mean"] == 0.5 and row["best_test_miou_mean"] == 0.55 and "test_accuracy_mean" not in row
    assert table.comparison_figure(lines, {}, MIOU).axes[0].get_title(loc="left") == "Test mIoU"
    headings, _, ours = cells(table.as_markdown(table.entries([result], ARMS, ERROR), {}, ERROR))
    assert headings[1] == "final [nats]" and ours[1] == "1.5000 (1)"


def test_parquet(tmp_path):
    table.write_table(tmp_path / "t.parquet", table.entries(RESULTS, ARMS), noisy_labels("cifar10", 0.4))
    first, gce, ours = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert first["test_accuracy_n"] == 2 and round(first["test_accuracy_std"], 5) == 0.01414
    assert first["paper_accuracy_percent"] == 70.77 and ours["paper_accuracy_percent"] is None
    assert gce["diverged"] == 1 and gce["test_accuracy_mean"] is None
    table.write_table(tmp_path / "empty.parquet", [], {})


def test_trials_on_disk_and_the_mean_of_their_rounds(tmp_path):
    for seed, accuracy in ((0, 0.2), (1, 0.4)):
        folder = tmp_path / "gce" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "outcome.json").write_text(json.dumps({"kind": "finished", "numbers": {"seconds": 1.0}}))
        rows = [
            {"arm": "gce", "round": r, "test_accuracy": accuracy if r else None, "step": 1} for r in range(2 + seed)
        ]
        write_rows(folder / "metrics.parquet", rows)
        np.savez(folder / "confusion.npz", gce=np.eye(2, dtype=int))
    results = table.from_directories(tmp_path)
    assert [(r.arm, r.seed) for r in results] == [("gce", 0), ("gce", 1)]
    first, second = table.mean_rows(tmp_path, results)  # the third round has one seed alone
    assert "test_accuracy" not in first and round(second["test_accuracy"], 9) == 0.3
    assert table.summed_confusions(tmp_path, results)["gce"].tolist() == [[2, 0], [0, 2]]


def test_figure_has_all_and_marks_the_papers():
    figure = table.comparison_figure(table.entries(RESULTS, ARMS), noisy_labels("cifar10", 0.4))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cross_entropy", "gce", "l2t_dln"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"] == [70.77]
