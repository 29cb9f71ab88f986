"""The pictures of a learned loss, from what its family gives to be drawn (`core/loss/family.py`).

Each function takes one loss at several moments of its training: a title, and its pictures, the same for each moment.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure

from l2t_ray.core.loss.family import Bars, Curve, LossPicture, Surface
from l2t_ray.figure_style import COLOURS, STYLE, blank_figure
from l2t_ray.reports.figures import loss_surfaces

Drawn = TypeVar("Drawn", Bars, Curve)
Moments = Sequence[tuple[str, Sequence[LossPicture]]]

_COLUMNS = 2
_MOST_BARS = 40
"""Of more numbers those are shown that are furthest from their start."""


def loss_figures(moments: Moments) -> dict[str, Figure]:
    """A figure for each kind of picture that there is, by file name."""
    figures = {}
    surfaces = [
        (title, on_arrays(picture)) for title, own in moments for picture in own if isinstance(picture, Surface)
    ]
    if surfaces:
        figures["loss_surfaces"] = loss_surfaces(surfaces)
    if any(isinstance(picture, Bars) for _, own in moments for picture in own):
        figures["loss_weights"] = loss_weights(moments)
    if any(isinstance(picture, Curve) for _, own in moments for picture in own):
        figures["loss_curves"] = loss_curves(moments)
    return figures


def loss_weights(moments: Moments) -> Figure:
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
            ax.set_yticks(places, names)
            ax.set_ylim(room - 0.4, -0.6)
            ax.grid(False, axis="y")
            ax.set(title=title)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(moments), frameon=False)
    return figure


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
