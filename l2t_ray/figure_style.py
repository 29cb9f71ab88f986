"""How all figures look. They are built through matplotlib's objects, never through pyplot: no window opens, and
matplotlib's settings are as before when a figure is drawn.

Colours of lines and bars are Okabe and Ito's, which colour-blind readers can tell apart; lines differ in dashes too.
"""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")
CLASS_COLOURS = (
    *("#56B4E9", "#D55E00", "#009E73", "#F0E442", "#0072B2", "#CC79A7", "#E69F00", "#3C2D00"),
    *("#0000FF", "#4BFF96", "#E10F4B", "#5A0069", "#0078FF", "#F0965A", "#0F0F96", "#A52D78"),
    *("#784B00", "#8796FF", "#4B693C", "#F0D2FF", "#B4FF78", "#4B1E3C", "#0000C3", "#87FFC3"),
)
"""Of areas without a name at their side. Okabe and Ito's come first; each further one is as far as can be from those
before it, from white and from grey, for normal, red-blind and green-blind eyes alike."""
GREY = "#BDBDBD"
"""Of what does not count."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.edgecolor": "#888888",
    "savefig.dpi": 160,
}


def blank_figure(width: float, height: float) -> Figure:
    """A white figure of that size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def class_colours(count: int) -> list[str]:
    """A colour for each class; of more classes than there are colours, several have one."""
    return [CLASS_COLOURS[number % len(CLASS_COLOURS)] for number in range(count)]


def plain(text: str) -> str:
    """A user's word as it is: a dollar sign in it is no formula."""
    return text.replace("$", r"\$")


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
