"""The pictures of what students answer, from what their task has to show (`tasks/shown.py`)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from l2t_ray.figure_style import COLOURS, DASHES, STYLE, blank_figure, plain, shortened
from l2t_ray.reports.box_sheet import box_sheet
from l2t_ray.reports.class_map_sheet import class_map_sheet
from l2t_ray.reports.sheets import Sheet
from l2t_ray.tasks.shown import BoxMarks, ByClass, Chart, ClassMap, Curves

EXAMPLES = "examples"
_SHEETS = {ClassMap: class_map_sheet, BoxMarks: box_sheet}
_MOST_CLASSES = 40
"""Of more classes those are shown in which the arms differ most."""
_LONGEST = 24


def answer_figures(sheet: Sheet, charts: Mapping[str, Sequence[Chart]]) -> dict[str, Figure]:
    """A figure of the examples, where there are some, and one for each chart that is drawn here, by file name.

    Args:
        charts: by arm, the same for each.
    """
    figures = {}
    if sheet.images and sheet.answers:
        figures[EXAMPLES] = _SHEETS[type(sheet.truths[0])](sheet)
    for number, chart in enumerate(next(iter(charts.values()), ())):
        same = {arm: own[number] for arm, own in charts.items()}
        if isinstance(chart, ByClass):
            figures[chart.name] = by_class({arm: own for arm, own in same.items() if isinstance(own, ByClass)})
        elif isinstance(chart, Curves):
            figures[chart.name] = curves({arm: own for arm, own in same.items() if isinstance(own, Curves)})
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


def curves(charts: Mapping[str, Curves]) -> Figure:
    """A panel for each title, a line an arm, and beside its name what the area under it comes to."""
    given = next(iter(charts.values()))
    with rc_context(STYLE):
        figure = blank_figure(3.9 * len(given.lines), 3.4)
        for ax, title in zip(figure.subplots(1, len(given.lines), squeeze=False)[0], given.lines, strict=True):
            for i, (arm, chart) in enumerate(charts.items()):
                x, y = chart.lines[title]
                label = f"{plain(shortened(arm, _LONGEST))}: {100 * y.mean():.1f} %"
                ax.plot(x, y, color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % len(DASHES)], label=label)
            ax.set(title=title, xlabel=given.x_label, ylabel=given.y_label, xlim=(0, 1), ylim=(0, 1.02))
            ax.legend(title="area under the line", loc="best")
    return figure


def _furthest_apart(charts: Mapping[str, ByClass], names: Sequence[str]) -> list[str]:
    def apart(name: str) -> float:
        own = [chart.values.get(name, 0.0) for chart in charts.values()]
        return max(own) - min(own)

    shown = set(sorted(names, key=apart, reverse=True)[:_MOST_CLASSES])
    return [name for name in names if name in shown]
