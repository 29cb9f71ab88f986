"""Images with a line of text each, on one sheet."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from l2t_ray.figure_style import blank_figure, shortened

COLUMNS = 4
_CELL_INCHES = (1.7, 2.0)
_LONGEST = 25


def gallery(images: UInt8[np.ndarray, "n c h w"], captions: Sequence[tuple[str, str]], title: str) -> Figure:
    """The images in rows of four, each under its two lines of text; of other than one or three channels the first is
    shown."""
    rows = -(-len(images) // COLUMNS)
    width, height = _CELL_INCHES
    figure = blank_figure(COLUMNS * width, rows * height + 0.4)
    figure.suptitle(title, x=0.02, ha="left", weight="bold", size=10)
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, image, lines in zip(cells, images, captions, strict=False):
        shown = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
        cell.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        # Class names are the user's: a dollar sign in one is no formula.
        cell.set_title(
            "\n".join(shortened(line, _LONGEST) for line in lines),
            size=8,
            weight="normal",
            loc="center",
            parse_math=False,
        )
    return figure
