"""Sheets of test images: the image, what is marked on it and what each student says, a row an image."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from l2t_ray.figure_style import COLOURS, blank_figure, plain, shortened
from l2t_ray.tasks.shown import Marks

_ROW_INCHES = 1.45
_MOST_INCHES = 2.6
_LONGEST = 22
_LONGEST_NAME = 44
_MOST_PIXELS = 640


@dataclass(frozen=True)
class Sheet:
    """Examples, and what is said of them.

    Attributes:
        images: uint8, of any sizes; of other than one or three channels the first is shown.
        truths: of each.
        answers: of each, by arm in the order in which arms are shown.
        class_names: in the order of their numbers.
        learned: the arm whose loss is learned; the first of the others is what it is held against.
    """

    images: Sequence[UInt8[np.ndarray, "c h w"]]
    truths: Sequence[Marks]
    answers: Mapping[str, Sequence[Marks]]
    class_names: Sequence[str]
    learned: str

    @property
    def colours(self) -> dict[str, str]:
        """Of the arms, as in all other figures."""
        return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(self.answers)}

    @property
    def against(self) -> str | None:
        """The arm that the learned one is held against; None: there are not both."""
        others = [arm for arm in self.answers if arm != self.learned]
        return others[0] if others and self.learned in self.answers else None


def grid_of(
    titles: Sequence[str],
    frames: Sequence[tuple[int, int]],
    legends: Sequence[tuple[str, Sequence[Patch]]],
    row_inches: float = _ROW_INCHES,
) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels, whose rows are as high as their images ask for, and the legends below them.

    Args:
        frames: height and width of the images, in pixels.
        row_inches: height of a square image.
    """
    widest = max(width / height for height, width in frames)
    column = min(_MOST_INCHES, max(1.0, row_inches * widest))
    width = column * len(titles) + 0.2
    legends = [(_wrapped(title, width), patches) for title, patches in legends]
    shapes = [_columns(width, [str(patch.get_label()) for patch in patches]) for _, patches in legends]
    below = [
        0.15 + 0.15 * len(title.splitlines()) + 0.18 * -(-len(patches) // columns)
        for (title, patches), columns in zip(legends, shapes, strict=True)
    ]
    heights = [column * height / width + 0.2 for height, width in frames] + below
    figure = blank_figure(width, sum(heights) + 0.7)
    grid = figure.add_gridspec(len(heights), len(titles), height_ratios=heights)
    axes = np.array([[figure.add_subplot(grid[row, k]) for k in range(len(titles))] for row in range(len(frames))])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(shortened(title, _LONGEST), loc="center", size=9, parse_math=False)
    for row, ((title, patches), columns) in enumerate(zip(legends, shapes, strict=True), start=len(frames)):
        ax = figure.add_subplot(grid[row, :])
        ax.set_axis_off()
        box = ax.legend(
            handles=patches,
            loc="upper left",
            ncols=columns,
            title=title,
            title_fontsize=8,
            borderpad=0,
            borderaxespad=0,
        )
        box.set_alignment("left")
    return figure, axes


def _wrapped(text: str, width: float) -> str:
    return "\n".join(textwrap.fill(line, int(width / 0.062)) for line in text.splitlines())


def _columns(width: float, names: Sequence[str]) -> int:
    """Of a legend, so that its longest name fits."""
    return max(1, min(len(names), int(width / (0.45 + 0.065 * max(map(len, names))))))


def show(ax: Axes, picture: np.ndarray) -> None:
    """A picture without axes, in a thin frame; of a large one no more pixels than can be seen."""
    height, width = picture.shape[:2]
    step = -(-max(height, width) // _MOST_PIXELS)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(picture[::step, ::step], cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#CCCCCC", linewidth=0.6)


def as_picture(image: UInt8[np.ndarray, "c h w"]) -> np.ndarray:
    """As it is drawn."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]


def patches_of(names: Sequence[tuple[str, str]]) -> list[Patch]:
    """Of a legend, by name and colour."""
    return [
        Patch(facecolor=colour, edgecolor="#888888", linewidth=0.4, label=plain(shortened(name, _LONGEST_NAME)))
        for name, colour in names
    ]
