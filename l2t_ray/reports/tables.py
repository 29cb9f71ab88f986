"""Comparison of arms, from the mappings that `summary.json` holds: as Markdown, or as cells for any other table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from l2t_ray.headline import headline_of, with_unit
from l2t_ray.interfaces import Metric
from l2t_ray.reports.spread import MISSING


def comparison_headings(summaries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What stands above `comparison_cells`."""
    headline = _headline(summaries)
    own = (with_unit(f"test {headline.title}", headline), "difference", with_unit("best", headline))
    return ("arm", *own, "validation error", "time [s]", "time ratio")


def comparison_cells(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells under `comparison_headings`, a row for each arm.

    Differences (in points) and ratios are to the first arm.

    The headline that counts is the one after the last round; the best one is picked by looking at the test set, so it
    stands beside for information and nothing is derived from it.

    Args:
        summaries: mappings with `arm` and any of `test_accuracy`, `best_test_accuracy` (fractions), `val_error`,
            `seconds`; of another headline than accuracy, as `headline` says. What is missing shows as a dash.
    """
    first: Mapping[str, Any] = summaries[0] if summaries else {}
    headline = _headline(summaries)
    form = f"{{:.{headline.digits}f}}"
    return [
        (
            str(summary["arm"]),
            _show(summary.get(headline.on_test), headline.factor, form),
            _difference(summary, first, headline) if i else "",
            _show(summary.get(headline.best), headline.factor, form),
            _show(summary.get("val_error"), 1, "{:.4f}"),
            _show(summary.get("seconds"), 1, "{:.1f}"),
            _ratio(summary.get("seconds"), first.get("seconds")),
        )
        for i, summary in enumerate(summaries)
    ]


def comparison(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    return markdown(comparison_headings(summaries), comparison_cells(summaries))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown, readable as text too: the first column to the left, the others to the right."""
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = [_markdown_row(headings, widths), _rule(widths)]
    return "\n".join(lines + [_markdown_row(row, widths) for row in rows]) + "\n"


def comparison_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """The comparison for the screen."""
    table = Table(header_style="bold")
    for i, heading in enumerate(comparison_headings(summaries)):
        table.add_column(heading.replace("[", "\\["), justify="right" if i else "left")
    for row in comparison_cells(summaries):
        table.add_row(*row)
    return table


def _markdown_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(aligned) + " |"


def _rule(widths: Sequence[int]) -> str:
    return "|" + "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths)) + "|"


def _show(value: float | int | None, factor: float | int, form: str) -> str:
    return MISSING if value is None else form.format(factor * value)


def _difference(summary: Mapping[str, Any], first: Mapping[str, Any], headline: Metric) -> str:
    here, there = summary.get(headline.on_test), first.get(headline.on_test)
    if here is None or there is None:
        return MISSING
    return f"{headline.factor * (here - there):+.{headline.digits}f}"


def _headline(summaries: Sequence[Mapping[str, Any]]) -> Metric:
    return headline_of(summaries[0] if summaries else {})


def _ratio(seconds: float | int | None, reference: float | int | None) -> str:
    return MISSING if seconds is None or not reference else f"{seconds / reference:.2f}"
