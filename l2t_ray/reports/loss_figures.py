"""The pictures of a learned loss, from what its family gives to be drawn (`core/loss/family.py`).

Each function takes one loss at several moments of its training: a title, and its pictures, the same for each moment.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from l2t_ray.core.loss.family import Bars, Curve, LossPicture, Surface
from l2t_ray.figure_style import COLOURS, STYLE, blank_figure, plain, shortened
from l2t_ray.reports.figures import draw_line, label_ends, loss_surfaces

Drawn = TypeVar("Drawn", Bars, Curve)
Moments = Sequence[tuple[str, Sequence[LossPicture]]]

_COLUMNS = 2
_LONGEST = 22
_TICKS = (
    (0.98, 0.99, 1.0, 1.01, 1.02),
    (0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06),
    (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
    (0.5, 0.65, 0.8, 1.0, 1.2, 1.5, 2.0),
    (0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0),
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
)
_MOST_NAMES, _NAME_INCHES = 12, 0.155
_MOST_BARS = 40
"""Of more numbers those are shown that are furthest from their start."""


def loss_figures(
    moments: Moments,
    rows: Sequence[Mapping[str, Any]] = (),
    class_names: Sequence[str] = (),
) -> dict[str, Figure]:
    """A figure for each kind of picture that there is, by file name.

    Args:
        rows: of the metrics table, of the arm that has the loss: where its numbers are followed over the rounds.
        class_names: in the order of their numbers.
    """
    figures = {}
    followed = followed_numbers(moments, rows, class_names)
    if followed:
        figures["loss_weights_over_rounds"] = weights_over_rounds(followed)
    surfaces = [
        (title, on_arrays(picture)) for title, own in moments for picture in own if isinstance(picture, Surface)
    ]
    if surfaces:
        figures["loss_surfaces"] = loss_surfaces(surfaces)
    if any(isinstance(picture, Bars) for _, own in moments for picture in own):
        figures["loss_weights"] = loss_weights(moments, class_names)
    if any(isinstance(picture, Curve) for _, own in moments for picture in own):
        figures["loss_curves"] = loss_curves(moments)
    return figures


def loss_weights(moments: Moments, class_names: Sequence[str] = ()) -> Figure:
    """The numbers of a loss by name, a panel for each set: its last moment as bars, those before as ticks."""
    panels = _by_title(moments, Bars)
    shown = {title: _furthest(bars[-1][1]) for title, bars in panels.items()}
    columns = min(_COLUMNS, len(panels))
    lines = [list(shown.values())[i : i + columns] for i in range(0, len(shown), columns)]
    heights = [0.6 + 0.22 * max(map(len, line)) for line in lines]
    with rc_context(STYLE):
        figure = blank_figure(3.6 * columns + 0.4, 0.4 + sum(heights))
        axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, bars), place in zip(axes, panels.items(), range(len(panels)), strict=False):
            room = max(map(len, lines[place // columns]))
            names, places = shown[title], np.arange(len(shown[title]))
            *before, (moment, last) = bars
            ax.barh(places, [last.numbers[name] for name in names], color=COLOURS[0], height=0.6, label=moment)
            for i, (earlier, picture) in enumerate(before):
                numbers = [picture.numbers[name] for name in names]
                ax.plot(numbers, places, "|", color=COLOURS[1 + i % (len(COLOURS) - 1)], markersize=9, label=earlier)
            ax.axvline(last.start, color="#333333", linewidth=0.8)
            ax.set_yticks(places, [plain(shortened(_label(last, name, class_names), _LONGEST)) for name in names])
            ax.set_ylim(room - 0.4, -0.6)
            ax.grid(False, axis="y")
            ax.set(title=title)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(moments), frameon=False)
    return figure


class Followed(NamedTuple):
    """Numbers of a loss by name, and for each the rounds and the values."""

    title: str
    start: float
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]]


def followed_numbers(
    moments: Moments, rows: Sequence[Mapping[str, Any]], class_names: Sequence[str] = ()
) -> list[Followed]:
    """The sets of numbers that the rows follow, as far as a logarithm has a place for them."""
    found = []
    for picture in (picture for _, own in moments[-1:] for picture in own):
        title, start, columns = _columns_of(picture, class_names)
        lines = {name: _positive(rows, column) for name, column in columns.items()}
        if any(len(x) for x, _ in lines.values()):
            found.append(Followed(title, start, {name: line for name, line in lines.items() if len(line[0])}))
    return found


def _columns_of(picture: LossPicture, class_names: Sequence[str]) -> tuple[str, float, dict[str, str]]:
    """Title and start of a picture's numbers, and the column of each by its name."""
    if isinstance(picture, Bars) and picture.column is not None:
        named = {_label(picture, key, class_names): f"{picture.column}{key}" for key in picture.numbers}
        return picture.title, picture.start, named
    if isinstance(picture, Curve) and picture.column is not None:
        ends = [*(f"{a:.2g} to {b:.2g}" for a, b in pairwise(picture.x[:-1])), f"above {picture.x[-2]:.2g}"]
        return f"slopes, {picture.title}", 1.0, {end: f"{picture.column}{piece}" for piece, end in enumerate(ends)}
    return "", 1.0, {}


def _positive(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and values, where a logarithm has a place for them."""
    pairs = [(row["round"], row[column]) for row in rows if 0 < (row.get(column) or 0) < np.inf]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    return x, y


def weights_over_rounds(followed: Sequence[Followed]) -> Figure:
    """What a loss weighs up and down, round by round: a panel for each set, all on one logarithmic scale about the
    start. Of many lines those that end furthest from it have colours and names."""
    columns = min(_COLUMNS, len(followed))
    named = [_named(own) for own in followed]
    lines = [named[i : i + columns] for i in range(0, len(named), columns)]
    heights = [max(1.7, 0.7 + _NAME_INCHES * max(map(len, line))) for line in lines]
    reach = max(np.abs(np.log(y / own.start)).max() for own in followed for _, y in own.lines.values())
    reach = max(1.15 * reach, np.log(1.03))
    with rc_context(STYLE):
        figure = blank_figure(4.2 * columns, 0.4 + sum(heights))
        figure.suptitle("What the learned loss weighs up and down", x=0.01, ha="left", weight="bold", size=11)
        axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).ravel()
        for ax in axes[len(followed) :]:
            ax.set_axis_off()
        for place, (ax, own, names) in enumerate(zip(axes, followed, named, strict=False)):
            ax.axhline(own.start, color="#333333", linewidth=0.8)
            ax.set_yscale("log")
            ends = []
            for name, (x, y) in own.lines.items():
                if name in names:
                    index = names.index(name)
                    ends.append((shortened(name, _LONGEST), index, *draw_line(ax, x, y, index, is_log=True)))
                else:
                    ax.plot(x, y, color="#C4C4C4", linewidth=0.8, zorder=1)
            ax.set_ylim(own.start * np.exp(-reach), own.start * np.exp(reach))
            ticks = [own.start * tick for tick in _ticks(reach)]
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.yaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.margins(x=0.02)
            ax.set(title=own.title, xlabel="round", ylabel="weight")
            label_ends(ax, ends, gap=_NAME_INCHES / max(0.5, heights[place // columns] - 0.6))
    return figure


def _named(own: Followed) -> list[str]:
    """The lines that have names, in their order."""
    furthest = sorted(own.lines, key=lambda name: -abs(np.log(own.lines[name][1][-1] / own.start)))[:_MOST_NAMES]
    return [name for name in own.lines if name in furthest]


def _ticks(reach: float) -> list[float]:
    """Factors around 1 that are easy to read, within a reach on the logarithmic scale."""
    factors = next((own for own in _TICKS if np.log(own[-1]) >= 0.6 * reach), _TICKS[-1])
    return [factor for factor in factors if abs(np.log(factor)) <= reach]


def loss_curves(moments: Moments) -> Figure:
    """The curves of a loss, a panel for each, beside the identity that it began with."""
    panels = _by_title(moments, Curve)
    with rc_context(STYLE):
        figure = blank_figure(3.0 * len(panels) + 0.4, 3.0)
        for ax, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            x = curves[-1][1].x
            ax.plot(x, x, color="#999999", linewidth=0.8, label="as given")
            for i, (moment, curve) in enumerate(curves):
                ax.plot(curve.x, curve.y, color=COLOURS[i % len(COLOURS)], marker="o", markersize=2.5, label=moment)
            ax.set(title=title, xlabel="value of the term", ylabel="what counts")
        figure.axes[-1].legend(frameon=False, fontsize=8)
    return figure


def on_arrays(surface: Surface) -> Callable[[Float[np.ndarray, "m 2"]], Float[np.ndarray, " m"]]:
    """NumPy pairs in, NumPy losses out."""

    def losses(pairs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return surface.losses(torch.from_numpy(pairs).float()).numpy()

    return losses


def _label(bars: Bars, name: str, class_names: Sequence[str]) -> str:
    return class_names[int(name)] if bars.are_classes and class_names else name


def _by_title(moments: Moments, kind: type[Drawn]) -> dict[str, list[tuple[str, Drawn]]]:
    panels: dict[str, list[tuple[str, Drawn]]] = {}
    for moment, pictures in moments:
        for picture in pictures:
            if isinstance(picture, kind):
                panels.setdefault(picture.title, []).append((moment, picture))
    return panels


def _furthest(bars: Bars) -> list[str]:
    """Names of the numbers that are shown, in their order."""
    furthest = sorted(bars.numbers, key=lambda name: -abs(bars.numbers[name] - bars.start))[:_MOST_BARS]
    return [name for name in bars.numbers if name in furthest]
