"""Tables and figures of a study, from the mapping that its `results.json` holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from l2t_ray.figure_style import COLOURS, DASHES, STYLE, blank_figure
from l2t_ray.headline import column_label, headline_of, metric_of
from l2t_ray.reports.figures import headline_panel
from l2t_ray.reports.spread import MISSING, spread
from l2t_ray.reports.tables import markdown

Results = Mapping[str, Any]
MOST_LINES = 6
_SIZE = (4.8, 3.0)
"""Inches: half of the page on a desktop, and still legible on a phone."""
_PANELS = {
    "logit_gradient_sum": (
        "Gradient at the logits",
        "logit_gradient_sum",
        r"$\sum |\partial L / \partial z|$",
        1.0,
        "log",
    ),
    "gradient_norm": ("Gradient at the weights", "gradient_norm", r"$\|\partial L / \partial \theta\|_2$", 1.0, "log"),
}


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: mean ± standard deviation over the seeds, and the paper's number where it has one.

    Two axes or more: the last one makes the columns. One axis: a row each, with the difference to the first row, taken
    seed by seed; samples of distributions instead the best one first.
    """
    return _matrix(results) if len(results["axes"]) > 1 else _list(results)


def notes(results: Results) -> list[str]:
    """What a reader has to know about the table."""
    ended = [o for cell in results["cells"] for o in cell["outcomes"] if o is not None]
    total = sum(len(cell["outcomes"]) for cell in results["cells"])
    label = column_label(results["metric"])
    found = [
        f"{label[0].upper()}{label[1:]} after the last round: mean ± sample standard deviation over the seeds "
        f"{_listed(results['seeds'])}. Setting: {results['setting']}."
    ]
    if "diverged" in ended:
        counted = "counted as chance" if results["chance"] is not None else "left out"
        found.append(f"†n: n of the runs diverged (a number was not finite) and are {counted}.")
    if "stopped" in ended:
        found.append(f"{ended.count('stopped')} trials were stopped early; their last numbers stand.")
    if len(ended) < total:
        found.append(
            f"{total - len(ended)} of {total} trials have not ended; (n) says from how many seeds a number is."
        )
    if results["paper"]:
        found.append("The paper's numbers (CIFAR-10, ResNet-8, its own settings) stand beside for orientation alone.")
    return found


def write_study(directory: Path, results: Results) -> list[Path]:
    """Writes `table.md` and the figures, as PNG and SVG under `figures/`; returns the files."""
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [directory / "table.md"]
    paths[0].write_text(f"# {results['title']}\n\n{markdown(*table(results))}\n" + "\n".join(notes(results)) + "\n")
    with rc_context({**STYLE, "svg.hashsalt": results["name"]}):
        for name, figure in figures(results).items():
            for kind in ("png", "svg"):
                paths.append(folder / f"{name}.{kind}")
                figure.savefig(paths[-1], metadata={"Date": None} if kind == "svg" else None)
    return paths


def figures(results: Results) -> dict[str, Figure]:
    """The figures that the results have numbers for, by name."""
    found = {}
    if any(len(_known(cell)) for cell in results["cells"]):
        has_few_lines = len({tuple(cell["cell"][:-1]) for cell in results["cells"]}) <= MOST_LINES
        is_over_axis = len(results["axes"]) > 1 and has_few_lines
        found["final"] = _final_over_axis(results) if is_over_axis else _final_of_rows(results)
    curves = results["curves"]
    few = {name: curve for name, curve in curves.items() if 0 < len(curve) <= MOST_LINES}
    headline = headline_of(results)
    if headline.on_test in few:
        found[headline.name] = _over_rounds(few[headline.on_test], headline_panel(headline))
    for name, column in (("logit_gradients", "logit_gradient_sum"), ("weight_gradients", "gradient_norm")):
        if column in few:
            found[name] = _over_rounds(few[column], _PANELS[column])
    return found


def _matrix(results: Results) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(cell["cell"][-1] for cell in results["cells"]))
    names = list(dict.fromkeys(tuple(cell["cell"][:-1]) for cell in results["cells"]))
    by_place = {(tuple(cell["cell"][:-1]), cell["cell"][-1]): cell for cell in results["cells"]}
    rows = []
    for name in names:
        rows.append([", ".join(name), *(_shown(by_place[name, column], results) for column in columns)])
        paper = results["paper"].get(", ".join(name))
        if isinstance(paper, Mapping):
            rows.append([f"{', '.join(name)} (paper)", *(_published(results, paper.get(c)) for c in columns)])
    return [" / ".join(axis.split(".")[-1] for axis in results["axes"]), *columns], rows


def _list(results: Results) -> tuple[list[str], list[list[str]]]:
    metric = metric_of(results["metric"])
    factor, digits = metric.factor, metric.digits
    cells, first = results["cells"], results["cells"][0]
    is_drawn = results["axes"] == ["sample"]
    if is_drawn:
        cells = sorted(cells, key=lambda cell: _rank(cell, results))
    has_paper = bool(results["paper"])
    headings = [results["axes"][0], column_label(results["metric"])]
    headings += [f"difference to {first['cell'][0]}"] * (not is_drawn) + ["paper"] * has_paper
    rows = []
    for cell in cells:
        row = [cell["cell"][0], _shown(cell, results)]
        if not is_drawn:
            pairs = zip(cell["values"], first["values"], strict=True)
            difference = spread(a - b for a, b in pairs if a is not None and b is not None)
            shown = MISSING
            if difference is not None:
                std = "" if difference.std is None else f" ± {factor * difference.std:.{digits}f}"
                shown = f"{factor * difference.mean:+.{digits}f}{std}"
            row.append("" if cell is first else shown)
        if has_paper:
            row.append(_published(results, results["paper"].get(cell["cell"][0])))
        rows.append(row)
    return headings, rows


def _rank(cell: Mapping[str, Any], results: Results) -> float:
    """Smaller is better; without values last."""
    known = _known(cell)
    if not len(known):
        return float("inf")
    return -known.mean() if metric_of(results["metric"]).higher_is_better else known.mean()


def _shown(cell: Mapping[str, Any], results: Results) -> str:
    metric = metric_of(results["metric"])
    factor, digits = metric.factor, metric.digits
    found = spread(cell["values"])
    diverged = cell["outcomes"].count("diverged")
    mark = f" †{diverged}" if diverged else ""
    if found is None:
        return MISSING + mark
    std = "" if found.std is None else f" ± {factor * found.std:.{digits}f}"
    number = f" ({found.n})" if found.n < len(results["seeds"]) else ""
    return f"{factor * found.mean:.{digits}f}{std}{number}{mark}"


def _published(results: Results, number: float | None) -> str:
    """A number of the paper, all of a study with the same decimals."""
    numbers = [n for row in results["paper"].values() for n in (row.values() if isinstance(row, Mapping) else [row])]
    decimals = max(len(f"{n:g}".partition(".")[2]) for n in numbers)
    return MISSING if number is None else f"{number:.{decimals}f}"


def _known(cell: Mapping[str, Any]) -> np.ndarray:
    return np.array([value for value in cell["values"] if value is not None], dtype=float)


def _final_over_axis(results: Results) -> Figure:
    """The metric over the values of the last axis: a line for each row, a band of one standard deviation."""
    factor = metric_of(results["metric"]).factor
    columns = list(dict.fromkeys(cell["cell"][-1] for cell in results["cells"]))
    places = _places(columns)
    names = list(dict.fromkeys(tuple(cell["cell"][:-1]) for cell in results["cells"]))
    with rc_context(STYLE):
        figure = blank_figure(*_SIZE)
        ax = figure.subplots()
        for i, name in enumerate(names):
            cells = [c for c in results["cells"] if tuple(c["cell"][:-1]) == name and len(_known(c))]
            x = np.array([places[columns.index(c["cell"][-1])] for c in cells])
            mean = np.array([factor * _known(c).mean() for c in cells])
            std = np.array([factor * _known(c).std(ddof=1) if len(_known(c)) > 1 else 0.0 for c in cells])
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, mean, color=colour, linestyle=dash, marker="o", markersize=3, label=", ".join(name))
        if min(places) > 0 and max(places) / min(places) >= 10:
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(places, columns)
        ax.set(title=results["title"], xlabel=results["axes"][-1], ylabel=column_label(results["metric"]))
        ax.legend(frameon=False)
    return figure


def _places(labels: Sequence[str]) -> list[float]:
    """Where labels stand on an axis: at their numbers if that is what they are, else one after the other."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return [float(i) for i in range(len(labels))]


def _final_of_rows(results: Results) -> Figure:
    """A dot for each seed, and the mean with one standard deviation, a line for each cell of the table."""
    factor = metric_of(results["metric"]).factor
    cells = [cell for cell in results["cells"] if len(_known(cell))]
    with rc_context(STYLE):
        figure = blank_figure(_SIZE[0], 0.9 + 0.28 * len(cells))
        ax = figure.subplots()
        for i, cell in enumerate(cells):
            values = factor * _known(cell)
            std = values.std(ddof=1) if len(values) > 1 else 0.0
            ax.plot(values, np.full(len(values), i), "o", color=COLOURS[0], alpha=0.35, markersize=4, linestyle="none")
            ax.errorbar(values.mean(), i, xerr=std, fmt="D", color="#000000", markersize=4, capsize=3, linewidth=1)
        ax.set_yticks(range(len(cells)), [", ".join(cell["cell"]) for cell in cells])
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.set(title=results["title"], xlabel=column_label(results["metric"]))
        ax.grid(False, axis="y")
    return figure


def _over_rounds(curves: Sequence[Mapping[str, Any]], panel: tuple[str, str, str, float, str]) -> Figure:
    """Mean over the seeds with a band of one standard deviation, a line for each cell."""
    title, _, label, factor, scale = panel
    with rc_context(STYLE):
        figure = blank_figure(*_SIZE)
        ax = figure.subplots()
        for i, curve in enumerate(curves):
            rounds, mean, std = (np.array(curve[key], dtype=float) for key in ("rounds", "mean", "std"))
            mean, std = factor * mean, factor * std
            low = np.maximum(mean - std, 0.05 * mean) if scale == "log" else mean - std
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            ax.fill_between(rounds, low, mean + std, color=colour, alpha=0.15, linewidth=0)
            ax.plot(rounds, mean, color=colour, linestyle=dash, label=", ".join(curve["cell"]))
        ax.set(title=title, xlabel="round", ylabel=label, yscale=scale)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if scale == "log":
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(frameon=False)
    return figure


def _listed(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
