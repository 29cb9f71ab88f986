"""Test images with the boxes that are marked on them, and with those that each student finds."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from l2t_ray.figure_style import GREY, STYLE, class_colours, shortened
from l2t_ray.reports.sheets import Sheet, as_picture, grid_of, patches_of, show
from l2t_ray.tasks.shown import BoxMarks, Marks

MIN_SCORE, MIN_OVERLAP = 0.5, 0.5
_ROW_INCHES = 1.9
_LONGEST = 12
_MOST_TEXTS = 12
"""Of more boxes on an image none is written at."""
_NOTE = f"""Shown are the surest boxes: as many as there are objects, and all with a score of {MIN_SCORE:g} or more.
Dashed: there is no such object (of the same class, with an overlap of {MIN_OVERLAP:g} or more)."""


def box_sheet(sheet: Sheet) -> Figure:
    """Columns: the truth, and the surest boxes of each arm: as many as there are objects, so that arms whose scores are
    of different sizes can be told apart, and all above a score. Solid where they are right."""
    truths = [_as_boxes(truth) for truth in sheet.truths]
    answers = {
        arm: [surest(_as_boxes(marks), truth) for marks, truth in zip(own, truths, strict=True)]
        for arm, own in sheet.answers.items()
    }
    colours = class_colours(len(sheet.class_names))
    everything = [*truths, *(marks for own in answers.values() for marks in own)]
    present: list[int] = sorted({int(label) for marks in everything for label in marks.labels})
    has_crowds = any(_crowd(truth).any() for truth in truths)
    legend = [(sheet.class_names[k], colours[k]) for k in present] + [("does not count", GREY)] * has_crowds
    frames = [image.shape[1:] for image in sheet.images]
    with rc_context({**STYLE, "axes.grid": False}):
        figure, axes = grid_of(["truth", *answers], frames, [(_NOTE, patches_of(legend))], row_inches=_ROW_INCHES)
        for row, (image, truth) in enumerate(zip(sheet.images, truths, strict=True)):
            for ax, marks in zip(axes[row], [truth, *(own[row] for own in answers.values())], strict=True):
                show(ax, as_picture(image))
                is_right = right(marks, truth) if marks.scores is not None else np.ones(len(marks.labels), dtype=bool)
                _draw(ax, marks, is_right, sheet.class_names, colours)
                if marks.scores is not None:
                    ax.set_xlabel(_found(marks, is_right, truth), fontsize=7, labelpad=2)
        figure.suptitle("First test images: boxes", x=0.01, ha="left", weight="bold", size=11)
    return figure


def surest(found: BoxMarks, truth: BoxMarks) -> BoxMarks:
    """Those of the boxes that are shown, the surest first."""
    assert found.scores is not None
    objects = int((~_crowd(truth)).sum())
    order = np.argsort(-found.scores, kind="stable")
    kept = order[(np.arange(len(order)) < objects) | (found.scores[order] >= MIN_SCORE)]
    return BoxMarks(found.corners[kept], found.labels[kept], found.scores[kept])


def right(found: BoxMarks, truth: BoxMarks) -> Bool[np.ndarray, " k"]:
    """Which boxes, the surest first, overlap by half with an object of their class that no other has taken; or lie in
    a region that does not count, which any number may."""
    overlaps = _overlaps(found, truth)
    overlaps[found.labels[:, None] != truth.labels] = 0
    is_free, is_right = np.ones(len(truth.labels), dtype=bool), np.zeros(len(found.labels), dtype=bool)
    for number, own in enumerate(overlaps):
        candidates = np.where(is_free, own, 0)
        if candidates.size and candidates.max() >= MIN_OVERLAP:
            taken = candidates.argmax()
            is_right[number], is_free[taken] = True, _crowd(truth)[taken]
    return is_right


def _overlaps(found: BoxMarks, truth: BoxMarks) -> Float[np.ndarray, "k m"]:
    """Intersection over union, and over the box's own area in a region that does not count."""
    a, b = found.corners[:, None].astype(float), truth.corners[None].astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(min=0).prod(axis=2)
    own, others = ((x[..., 2:] - x[..., :2]).prod(axis=2) for x in (a, b))
    return both / np.maximum(np.where(_crowd(truth), own, own + others - both), 1e-9)


def _found(marks: BoxMarks, is_right: Bool[np.ndarray, " k"], truth: BoxMarks) -> str:
    objects = int((~_crowd(truth)).sum())
    return f"{min(int(is_right.sum()), objects)} of {objects} found, {int((~is_right).sum())} wrong"


def _draw(
    ax: Axes, marks: BoxMarks, is_right: Bool[np.ndarray, " k"], names: Sequence[str], colours: Sequence[str]
) -> None:
    for number in reversed(range(len(marks.labels))):  # the surest on top
        x1, y1, x2, y2 = marks.corners[number].tolist()
        label = int(marks.labels[number])
        colour = GREY if _crowd(marks)[number] else colours[label]
        style = "-" if is_right[number] else (0, (2.5, 1.5))
        # Pixels are drawn about their centres: the upper left edge of the first one is at -0.5.
        box = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.3)
        box.set_linestyle(style)
        box.set_path_effects([withStroke(linewidth=2.2, foreground="white", alpha=0.7)])  # dark lines on dark images
        ax.add_patch(box)
        if len(marks.labels) <= _MOST_TEXTS:
            name = shortened(names[label], _LONGEST)
            text = name if marks.scores is None else f"{name} {marks.scores[number]:.2f}"
            _write(ax, text, x1 - 0.5, y1 - 0.5, colour)


def _write(ax: Axes, text: str, x: float, y: float, colour: str) -> None:
    """At the upper left corner of a box, above it where there is room."""
    at_top = y < 0.06 * abs(np.subtract(*ax.get_ylim()))
    red, green, blue = to_rgb(colour)
    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
    frame = {"boxstyle": "square,pad=0.08", "facecolor": colour, "edgecolor": "none"}
    ax.text(
        x, y, text, size=5.5, color=ink, va="top" if at_top else "bottom", bbox=frame, clip_on=True, parse_math=False
    )


def _crowd(marks: BoxMarks) -> Bool[np.ndarray, " k"]:
    return np.zeros(len(marks.labels), dtype=bool) if marks.crowd is None else marks.crowd


def _as_boxes(marks: Marks) -> BoxMarks:
    assert isinstance(marks, BoxMarks)
    return marks
