"""The pictures of what students answer, from what their task has to show (`tasks/shown.py`)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from l2t_ray.figure_style import COLOURS, STYLE, blank_figure, plain, shortened
from l2t_ray.reports.example_sheets import Sheet, example_sheet
from l2t_ray.tasks.shown import ByClass, Chart

EXAMPLES = "examples"
_MOST_CLASSES = 40
"""Of more classes those are shown in which the arms differ most."""
_LONGEST = 24


def answer_figures(sheet: Sheet, charts: Mapping[str, Sequence[Chart]]) -> dict[str, Figure]:
    """A figure of the examples, where there are some, and one for each chart that is drawn here, by file name.

    Args:
        charts: by arm, the same for each.
    """
    figures = {EXAMPLES: example_sheet(sheet)} if sheet.images and sheet.answers else {}
    for number, chart in enumerate(next(iter(charts.values()), ())):
        if isinstance(chart, ByClass):
            same = {arm: own[number] for arm, own in charts.items()}
            figures[chart.name] = by_class({arm: own for arm, own in same.items() if isinstance(own, ByClass)})
    return figures


def by_class(charts: Mapping[str, ByClass]) -> Figure:
    """A group of bars for each class, one bar an arm, in the order of classes; the whole stands first."""
    given = next(iter(charts.values()))
    every = list(dict.fromkeys(name for chart in charts.values() for name in chart.values))
    names = _furthest_apart(charts, every)
    groups, height = [given.whole[0], *names], 0.8 / len(charts)
    places = np.arange(len(groups)) + np.array([0.0, *([0.5] * len(names))])
    title = given.title if len(names) == len(every) else f"{given.title}: the {len(names)} that differ most"
    with rc_context(STYLE):
        figure = blank_figure(6.4, 1.0 + len(groups) * max(0.24, 0.13 * len(charts)))
        ax = figure.subplots()
        for i, (arm, chart) in enumerate(charts.items()):
            values = 100 * np.array([chart.whole[1], *(chart.values.get(name, np.nan) for name in names)])
            at = places + (i - (len(charts) - 1) / 2) * height
            ax.barh(at, values, height=height, color=COLOURS[i % len(COLOURS)], label=plain(arm))
        ax.axhline(0.75, color="#888888", linewidth=0.6)
        ax.set_yticks(places, [plain(shortened(name, _LONGEST)) for name in groups])
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.set_ylim(places[-1] + 0.6, -0.6)
        ax.set(title=title, xlabel=given.label, xlim=(0, 100))
        ax.grid(False, axis="y")
        figure.legend(loc="outside lower center", ncols=min(4, len(charts)))
    return figure


def _furthest_apart(charts: Mapping[str, ByClass], names: Sequence[str]) -> list[str]:
    def apart(name: str) -> float:
        own = [chart.values.get(name, 0.0) for chart in charts.values()]
        return max(own) - min(own)

    shown = set(sorted(names, key=apart, reverse=True)[:_MOST_CLASSES])
    return [name for name in names if name in shown]
