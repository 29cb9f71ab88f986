"""Tables, figures and the page of a study, from numbers made up here."""

import re

import pytest

from l2t_ray.reports.page import write_page
from l2t_ray.reports.study import figures, notes, table, write_study


def cell(name, values, outcomes=None):
    return {"cell": name, "values": values, "outcomes": outcomes or ["finished"] * len(values), "seconds": values}


def study(axes, cells, **changes):
    curve = [{"cell": c["cell"], "rounds": [1, 2], "mean": [0.5, 0.6], "std": [0.1, 0.0]} for c in cells]
    return {
        "name": "made_up",
        "size": "digits",
        "title": "Made <up>",
        "claim": "One is more than two.",
        "table": "Table 9",
        "command": "python jobs/study.py --config 'a b.yaml'",
        "metric": "test_accuracy",
        "axes": axes,
        "seeds": [0, 1, 2],
        "paper": {},
        "setting": "digits, lenet, 2 rounds",
        "chance": 0.1,
        "cells": cells,
        "curves": {"test_accuracy": curve, "logit_gradient_sum": curve, "gradient_norm": []},
        **changes,
    }


@pytest.fixture
def rows():
    return study(
        ["case"],
        [cell(["one"], [0.90, 0.92, 0.94]), cell(["two"], [0.91, 0.91, 0.91]), cell(["three"], [None, None, None])],
        paper={"two": 90.65},
    )


@pytest.fixture
def matrix():
    return study(
        ["case", "training.learning_rate"],
        [
            cell(["SLF", "0.1"], [0.90, 0.92, None], ["finished", "finished", None]),
            cell(["SLF", "0.5"], [0.1, 0.1, 0.7], ["diverged", "diverged", "finished"]),
            cell(["ours", "0.1"], [0.95, 0.95, 0.95]),
            cell(["ours", "0.5"], [0.9, 0.9, 0.9]),
        ],
        paper={"SLF": {"0.5": 13.5}},
    )


def test_samples_stand_in_order_of_what_they_came_to():
    made = study(["sample"], [cell([n], v) for n, v in (("1: a", [0.5]), ("2: b", [None]), ("3: c", [0.9]))], seeds=[0])
    assert table(made) == (["sample", "test accuracy [%]"], [["3: c", "90.00"], ["1: a", "50.00"], ["2: b", "–"]])
    _, rows = table({**made, "metric": "test_error"})
    assert [row[0] for row in rows] == ["1: a", "3: c", "2: b"]


def test_one_axis_is_a_list_with_differences_seed_by_seed(rows):
    headings, found = table(rows)
    assert headings == ["case", "test accuracy [%]", "difference to one", "paper"]
    assert found == [
        ["one", "92.00 ± 2.00", "", "–"],
        ["two", "91.00 ± 0.00", "-1.00 ± 2.00", "90.65"],
        ["three", "–", "–", "–"],
    ]


def test_two_axes_are_a_matrix_with_the_papers_rows_below(matrix):
    headings, found = table(matrix)
    assert headings == ["case / learning_rate", "0.1", "0.5"]
    assert found == [
        ["SLF", "91.00 ± 1.41 (2)", "30.00 ± 34.64 †2"],
        ["SLF (paper)", "–", "13.5"],
        ["ours", "95.00 ± 0.00", "90.00 ± 0.00"],
    ]


def test_notes_say_what_diverged_and_what_is_missing(matrix, rows):
    said = " ".join(notes(matrix))
    assert "seeds 0 to 2" in said and "counted as chance" in said and "1 of 12 trials have not ended" in said
    assert "diverged" not in " ".join(notes(rows))


def test_figures_only_of_what_there_are_numbers_for(matrix, rows):
    assert list(figures(matrix)) == ["final", "accuracy", "logit_gradients"]
    empty = {**rows, "cells": [cell(["one"], [None])], "curves": {"test_accuracy": []}}
    assert figures(empty) == {}


def test_more_lines_than_a_figure_holds_are_dots_below_each_other():
    """Two axes of rows and one of columns: a line for each cell, where a legend would bury the figure."""
    names = [["ours", f"{noise} %", rate] for noise in range(7) for rate in ("0.1", "0.4")]
    made = figures(study(["case", "noise", "rate"], [cell(name, [0.9, 0.8, 0.7]) for name in names], curves={}))
    (ax,) = made["final"].axes
    assert ax.get_legend() is None and [t.get_text() for t in ax.get_yticklabels()] == [", ".join(n) for n in names]
    assert made["final"].get_figheight() > 4


def test_a_study_is_written_as_markdown_and_pictures(matrix, tmp_path):
    names = {str(path.relative_to(tmp_path)) for path in write_study(tmp_path, matrix)}
    assert names == {"table.md"} | {
        f"figures/{name}.{kind}" for name in ("final", "accuracy", "logit_gradients") for kind in ("png", "svg")
    }
    assert "| SLF (paper)" in (tmp_path / "table.md").read_text()


def test_the_page_stands_alone(matrix, rows, tmp_path):
    page, markdown, *pictures = write_page(tmp_path, [rows, {**matrix, "name": "other"}])
    text = page.read_text()
    assert "Made &lt;up&gt;" in text and "Made <up>" not in text
    assert "python jobs/study.py --config &#x27;a b.yaml&#x27;" in text
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []  # nothing is fetched
    assert text.count("<tr class=paper>") == 1 and text.count("<section") == 2
    assert {f'href="#{name}-digits"' in text and f'id="{name}-digits"' in text for name in ("made_up", "other")} == {
        True
    }
    assert all(f"figures/{path.name}" in markdown.read_text() and path.exists() for path in pictures)


def test_the_same_results_give_the_same_bytes(matrix, tmp_path):
    first, second = (write_page(tmp_path / name, [matrix])[0].read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_study_of_another_headline_shows_that_one(rows, tmp_path):
    curves = {"test_miou": rows["curves"]["test_accuracy"]}
    made = {**rows, "headline": "miou", "metric": "best_test_miou", "curves": curves, "chance": None}
    assert table(made)[0][1] == "best test mIoU [%]" and notes(made)[0].startswith("Best test mIoU [%] after")
    assert list(figures(made)) == ["final", "miou"]
    assert figures(made)["miou"].axes[0].get_ylabel() == "mIoU [%]"
    write_page(tmp_path, [made])
    assert "Test mIoU over the rounds" in (tmp_path / "index.html").read_text()


def test_of_a_metric_that_is_to_be_small_the_smallest_sample_stands_first():
    cells = [cell([n], v) for n, v in (("1: a", [0.5]), ("2: b", [0.2]))]
    assert [row[0] for row in table(study(["sample"], cells, seeds=[0], metric="val_error"))[1]] == ["2: b", "1: a"]
