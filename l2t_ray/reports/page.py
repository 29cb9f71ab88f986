"""One page with all studies and runs: HTML that stands alone, and Markdown with its figures beside it."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from l2t_ray.figure_style import STYLE
from l2t_ray.headline import metric_named
from l2t_ray.reports.html_table import html_table
from l2t_ray.reports.run_section import ShownRun, run_markdown, run_section
from l2t_ray.reports.study import figures, notes, table
from l2t_ray.reports.tables import markdown

ALT = {
    "final": "Final results with one standard deviation over the seeds",
    "logit_gradients": "Sum of the gradients at the logits (Figure 1, first), mean and one standard deviation",
    "weight_gradients": "Norm of the gradient at the weights (Figure 1, second), mean and one standard deviation",
}
_OF_A_HEADLINE = "Test {} over the rounds, mean and band of one standard deviation"
_MOST_COLUMNS = 5
"""In a table with more, deviations stand below their means."""
_STYLE_SHEET = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; color: #1b1f24; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 .3rem; }
h2, nav li { overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1rem 0 0; }
a { color: #0a58a6; }
section { border-top: 1px solid #d8dde3; margin-top: 2.2rem; padding-top: 1.6rem; }
.meta { color: #57606a; margin: 0 0 .8rem; }
.scroll { overflow-x: auto; margin: 1rem 0; background: /* a shadow at an edge behind which there is more */
  linear-gradient(90deg, #fff 40%, #fff0) left / 2.5rem 100% no-repeat local,
  linear-gradient(270deg, #fff 40%, #fff0) right / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, #0003, #0000) left / .8rem 100% no-repeat scroll,
  linear-gradient(270deg, #0003, #0000) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e8ec; }
th { border-bottom: 2px solid #aab2bb; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.wide .spread { display: block; font-size: .85em; color: #57606a; }
tr.paper td { color: #57606a; font-style: italic; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 1.5rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: auto; max-width: 100%; height: auto; }
figure.picture { margin: 1.6rem 0; }
figure.picture img { max-width: none; }
figcaption, .notes { color: #57606a; font-size: .88rem; }
pre { background: #f4f6f8; padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .88rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  table { font-size: .85rem; }
  th, td { padding: .3rem .35rem; }
  th, td:first-child { white-space: normal; }
  th { vertical-align: bottom; }
  .spread { display: block; font-size: .85em; color: #57606a; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  section { break-before: page; border: 0; margin-top: 0; padding-top: 0; }
  section:first-of-type { break-before: auto; margin-top: 1.5rem; }
  figure, tr, pre { break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  figure.picture img { max-width: 100%; }
  .figures { grid-template-columns: 1fr 1fr; }
  table { font-size: 8.5pt; }
  th, td { padding: .2rem .45rem; white-space: normal; }
}
"""


def write_page(directory: Path, studies: Sequence[Mapping[str, Any]], runs: Sequence[ShownRun] = ()) -> list[Path]:
    """Writes `index.html`, `report.md` and the figures of the latter; returns the files.

    Args:
        studies: what each study's `results.json` holds, in the order of the page.
        runs: shown after them.
    """
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    page, text = directory / "index.html", directory / "report.md"
    paths, sections, paragraphs = [page, text], [], []
    for study in studies:
        drawn = {name: _svg(figure, salt=anchor(study)) for name, figure in figures(study).items()}
        for name, svg in drawn.items():
            paths.append(folder / f"{anchor(study)}-{name}.svg")
            paths[-1].write_bytes(svg)
        sections.append(_section(study, drawn))
        paragraphs.append(_markdown(study, drawn))
    for run in runs:
        for name, _ in run.captioned:
            paths.append(folder / f"{run.anchor}-{name}.png")
            paths[-1].write_bytes(run.pictures[name])
        sections.append(run_section(run))
        paragraphs.append(run_markdown(run))
    page.write_text(_PAGE.format(style=_STYLE_SHEET, links=_links(studies, runs), sections="\n".join(sections)))
    text.write_text("# Studies and runs\n\n" + "\n\n".join(paragraphs) + "\n")
    return paths


def anchor(study: Mapping[str, Any]) -> str:
    """A name for links and files."""
    return re.sub(r"[^\w-]+", "-", "-".join(filter(None, (study["name"], study["size"]))))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>l2t_ray: studies and runs</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>l2t_ray: studies and runs</h1>
<p class="meta">Learning the loss while training the model. Tables of studies stand with their commands.</p>
<nav><ul>{links}</ul></nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def _links(studies: Sequence[Mapping[str, Any]], runs: Sequence[ShownRun]) -> str:
    places = [(anchor(study), _heading(study)) for study in studies] + [(run.anchor, run.heading) for run in runs]
    return "".join(f'<li><a href="#{place}">{html.escape(heading)}</a></li>' for place, heading in places)


def _heading(study: Mapping[str, Any]) -> str:
    table_name = f"{study['table']}: " if study["table"] else ""
    size = f" ({study['size']})" if study["size"] else ""
    return f"{table_name}{study['title']}{size}"


def _section(study: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    headings, rows = table(study)
    shown = html_table(
        headings,
        rows,
        is_wide=len(headings) > _MOST_COLUMNS,
        cell=_cell,
        row_class=lambda row: "paper" if row[0].endswith("(paper)") else "",
    )
    pictures = "".join(
        f'<figure><img alt="{_alt(name)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
        f"<figcaption>{_alt(name)}.</figcaption></figure>"
        for name, svg in drawn.items()
    )
    claim = f'<p class="meta">{html.escape(study["claim"])}</p>' if study["claim"] else ""
    return (
        f'<section id="{anchor(study)}"><h2>{html.escape(_heading(study))}</h2>{claim}{shown}'
        f'<div class="notes">{"".join(f"<p>{html.escape(note)}</p>" for note in notes(study))}</div>'
        f"<pre>{html.escape(study['command'])}</pre>"
        f'<div class="figures">{pictures}</div></section>'
    )


def _cell(text: str) -> str:
    """The cell of a table; what stands behind ± may go on a line of its own."""
    mean, separator, rest = text.partition(" ± ")
    spread = f' <span class="spread">± {html.escape(rest)}</span>' if separator else ""
    return html.escape(mean) + spread


def _markdown(study: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    parts = [
        f"## {_heading(study)}",
        study["claim"],
        markdown(*table(study)).strip(),
        "\n".join(notes(study)),
        f"```sh\n{study['command']}\n```",
        *(f"![{_alt(name)}](figures/{anchor(study)}-{name}.svg)" for name in drawn),
    ]
    return "\n\n".join(filter(None, parts))


def _alt(name: str) -> str:
    return ALT.get(name) or _OF_A_HEADLINE.format(metric_named(name).title)


def _svg(figure: Figure, *, salt: str) -> bytes:
    buffer = BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
