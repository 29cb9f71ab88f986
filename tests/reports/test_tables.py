"""The comparison of arms, by hand-computed cells."""

import io

from rich.console import Console

from l2t_ray.reports.tables import comparison, comparison_cells, comparison_table

SUMMARIES = [
    {"arm": "cross_entropy", "test_accuracy": 0.7683, "best_test_accuracy": 0.8, "val_error": 1.25, "seconds": 10},
    {"arm": "l2t_dln", "test_accuracy": 0.9211, "best_test_accuracy": 0.93, "val_error": 0.5, "seconds": 35.0},
    {"arm": "l2r"},
]


def test_cells():
    assert comparison_cells(SUMMARIES) == [
        ("cross_entropy", "76.83", "", "80.00", "1.2500", "10.0", "1.00"),
        ("l2t_dln", "92.11", "+15.28", "93.00", "0.5000", "35.0", "3.50"),
        ("l2r", "–", "–", "–", "–", "–", "–"),
    ]


def test_markdown_is_a_table():
    lines = comparison(SUMMARIES).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {8} and len({len(line) for line in lines}) == 1
    assert lines[1].startswith("|---") and lines[3].split("|")[3].strip() == "+15.28"
    assert comparison([]).count("\n") == 2


def test_screen_table():
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table(SUMMARIES))
    assert "+15.28" in console.file.getvalue() and "[%]" in console.file.getvalue()
