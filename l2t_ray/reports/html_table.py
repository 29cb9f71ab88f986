"""A table as HTML, in a frame of its own in which it moves where the page is narrower."""

import html
from collections.abc import Callable, Sequence


def html_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    is_wide: bool,
    cell: Callable[[str], str] = html.escape,
    row_class: Callable[[Sequence[str]], str] = lambda row: "",
) -> str:
    """
    Args:
        is_wide: what stands behind a number may go below it.
        cell: the HTML of a cell.
        row_class: of a row; empty: none.
    """
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = "".join(
        f"<tr{f' class={name}' if (name := row_class(row)) else ''}>"
        + "".join(f"<td>{cell(text)}</td>" for text in row)
        + "</tr>"
        for row in rows
    )
    wide = ' class="wide"' if is_wide else ""
    table = f"<table{wide}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'
