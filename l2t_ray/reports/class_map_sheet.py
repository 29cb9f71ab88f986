"""Test images with a class for each pixel (Figure 2 of the supplement)."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from l2t_ray.figure_style import GREY, STYLE, class_colours
from l2t_ray.reports.sheets import Sheet, as_picture, grid_of, patches_of, show
from l2t_ray.tasks.shown import ClassMap, Marks

SAME, BOTH_WRONG = "#FFFFFF", "#000000"


def class_map_sheet(sheet: Sheet) -> Figure:
    """Columns: the image, the truth, each arm's classes, and where the learned arm and the one it is held against
    differ, in the colour of the one that is right."""
    truths = [_as_map(truth) for truth in sheet.truths]
    answers = {arm: [_as_map(marks) for marks in own] for arm, own in sheet.answers.items()}
    frames = [_extent(truth) for truth in truths]
    colours = class_colours(len(sheet.class_names))
    titles = ["image", "truth", *answers, *(["difference"] if sheet.against else [])]
    with rc_context({**STYLE, "axes.grid": False}):
        has_ignored = any(_ignored(truth)[:h, :w].any() for truth, (h, w) in zip(truths, frames, strict=True))
        legends = _legends(sheet, _present(truths, answers), has_ignored=has_ignored)
        figure, axes = grid_of(titles, frames, legends)
        for row, (image, truth, frame) in enumerate(zip(sheet.images, truths, frames, strict=True)):
            said = [own[row] for own in answers.values()]
            show(axes[row, 0], as_picture(image)[: frame[0], : frame[1]])
            for ax, shown in zip(axes[row, 1:], [truth, *said], strict=False):
                show(ax, coloured(shown, truth, colours)[: frame[0], : frame[1]])
            if sheet.against:
                own, other = answers[sheet.learned][row], answers[sheet.against][row]
                pair = sheet.colours[sheet.learned], sheet.colours[sheet.against]
                show(axes[row, -1], differences(truth, own, other, pair)[: frame[0], : frame[1]])
                axes[row, -1].set_xlabel(_shares(truth, own, other), fontsize=7, labelpad=2)
        figure.suptitle("First test images: the class of each pixel", x=0.01, ha="left", weight="bold", size=11)
    return figure


def coloured(shown: ClassMap, truth: ClassMap, colours: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """The classes in their colours, and grey where the truth says that a pixel does not count."""
    table = np.stack([_rgb(colour) for colour in colours])
    picture = table[np.where(_ignored(truth), 0, shown.classes)]
    picture[_ignored(truth)] = _rgb(GREY)
    return picture


def differences(
    truth: ClassMap, own: ClassMap, other: ClassMap, colours: tuple[str, str]
) -> UInt8[np.ndarray, "h w 3"]:
    """White where both say the same, the colour of the one that alone is right, black where they differ and both are
    wrong, grey where a pixel does not count."""
    picture = np.tile(_rgb(SAME), (*truth.classes.shape, 1))
    picture[own.classes != other.classes] = _rgb(BOTH_WRONG)
    for said, against, colour in ((own, other, colours[0]), (other, own, colours[1])):
        picture[(said.classes == truth.classes) & (against.classes != truth.classes)] = _rgb(colour)
    picture[_ignored(truth)] = _rgb(GREY)
    return picture


def _rgb(colour: str) -> UInt8[np.ndarray, "3"]:
    return np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)


def _shares(truth: ClassMap, own: ClassMap, other: ClassMap) -> str:
    """Shares of the pixels that count, of which one alone is right."""
    counts = ~_ignored(truth)
    is_own, is_other = own.classes == truth.classes, other.classes == truth.classes
    total = max(1, counts.sum())
    gained, lost = ((mask & counts).sum() / total for mask in (is_own & ~is_other, is_other & ~is_own))
    return f"gains {100 * gained:.1f} %, loses {100 * lost:.1f} %"


def _as_map(marks: Marks) -> ClassMap:
    assert isinstance(marks, ClassMap)
    return marks


def _ignored(truth: ClassMap) -> np.ndarray:
    return truth.classes == truth.ignore


def _extent(truth: ClassMap) -> tuple[int, int]:
    """Height and width without what lies below and right of all pixels that count: images are filled up there."""
    counts = ~_ignored(truth)
    if not counts.any():
        return counts.shape[0], counts.shape[1]
    rows, columns = counts.nonzero()
    return int(rows.max()) + 1, int(columns.max()) + 1


def _present(truths: Sequence[ClassMap], answers: Mapping[str, Sequence[ClassMap]]) -> list[int]:
    """The classes that are anywhere on the sheet."""
    found = set()
    for row, truth in enumerate(truths):
        for shown in (truth, *(own[row] for own in answers.values())):
            found |= set(np.unique(shown.classes[~_ignored(truth)]).tolist())
    return sorted(found)


def _legends(sheet: Sheet, present: Sequence[int], *, has_ignored: bool) -> list[tuple[str, list[Patch]]]:
    """By title, what the colours stand for."""
    colours = class_colours(len(sheet.class_names))
    classes = [(sheet.class_names[k], colours[k]) for k in present] + [("does not count", GREY)] * has_ignored
    legends = [("class", patches_of(classes))]
    if sheet.against:
        said = [
            (f"only {sheet.learned} is right", sheet.colours[sheet.learned]),
            (f"only {sheet.against} is right", sheet.colours[sheet.against]),
            ("both are wrong, and differ", BOTH_WRONG),
            ("they agree", SAME),
        ]
        legends.append((f"difference: what {sheet.learned} gains and loses against {sheet.against}", patches_of(said)))
    return legends
