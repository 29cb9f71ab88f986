"""Test images beside what is marked on them and what each student says (Figure 2 of the supplement), a row an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from l2t_ray.figure_style import COLOURS, GREY, STYLE, blank_figure, class_colours, plain, shortened
from l2t_ray.tasks.shown import ClassMap, Marks

SAME, BOTH_WRONG = "#FFFFFF", "#000000"
_ROW_INCHES = 1.45
_MOST_INCHES = 2.6
_LONGEST = 22
_LONGEST_NAME = 44


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


def example_sheet(sheet: Sheet) -> Figure:
    """The sheet of whichever marks the examples have."""
    return _class_maps(sheet)


def _class_maps(sheet: Sheet) -> Figure:
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
        figure, axes = _grid(titles, frames, legends)
        for row, (image, truth, frame) in enumerate(zip(sheet.images, truths, frames, strict=True)):
            said = [own[row] for own in answers.values()]
            _show(axes[row, 0], _as_picture(image)[: frame[0], : frame[1]])
            for ax, shown in zip(axes[row, 1:], [truth, *said], strict=False):
                _show(ax, coloured(shown, truth, colours)[: frame[0], : frame[1]])
            if sheet.against:
                own, other = answers[sheet.learned][row], answers[sheet.against][row]
                pair = sheet.colours[sheet.learned], sheet.colours[sheet.against]
                _show(axes[row, -1], differences(truth, own, other, pair)[: frame[0], : frame[1]])
                axes[row, -1].set_xlabel(_shares(truth, own, other), fontsize=7, labelpad=2)
        figure.suptitle("First test images: the class of each pixel", x=0.01, ha="left", weight="bold", size=11)
    return figure


def coloured(shown: ClassMap, truth: ClassMap, colours: Sequence[str]) -> Float[np.ndarray, "h w 3"]:
    """The classes in their colours, and grey where the truth says that a pixel does not count."""
    table = np.array([to_rgb(colour) for colour in colours])
    picture = table[np.where(_ignored(truth), 0, shown.classes)]
    picture[_ignored(truth)] = to_rgb(GREY)
    return picture


def differences(
    truth: ClassMap, own: ClassMap, other: ClassMap, colours: tuple[str, str]
) -> Float[np.ndarray, "h w 3"]:
    """White where both say the same, the colour of the one that alone is right, black where they differ and both are
    wrong, grey where a pixel does not count."""
    picture = np.tile(np.array(to_rgb(SAME)), (*truth.classes.shape, 1))
    picture[own.classes != other.classes] = to_rgb(BOTH_WRONG)
    for said, against, colour in ((own, other, colours[0]), (other, own, colours[1])):
        picture[(said.classes == truth.classes) & (against.classes != truth.classes)] = to_rgb(colour)
    picture[_ignored(truth)] = to_rgb(GREY)
    return picture


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


def _grid(
    titles: Sequence[str], frames: Sequence[tuple[int, int]], legends: Sequence[tuple[str, Sequence[Patch]]]
) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels, whose rows are as high as their images ask for, and the legends below them."""
    widest = max(width / height for height, width in frames)
    column = min(_MOST_INCHES, max(1.0, _ROW_INCHES * widest))
    width = column * len(titles) + 0.2
    shapes = [_columns(width, [str(patch.get_label()) for patch in patches]) for _, patches in legends]
    below = [0.3 + 0.18 * -(-len(patches) // columns) for (_, patches), columns in zip(legends, shapes, strict=True)]
    heights = [column * height / width + 0.2 for height, width in frames] + below
    figure = blank_figure(width, sum(heights) + 0.7)
    grid = figure.add_gridspec(len(heights), len(titles), height_ratios=heights)
    axes = np.array([[figure.add_subplot(grid[row, k]) for k in range(len(titles))] for row in range(len(frames))])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(shortened(title, _LONGEST), loc="center", size=9, parse_math=False)
    for row, ((title, patches), columns) in enumerate(zip(legends, shapes, strict=True), start=len(frames)):
        ax = figure.add_subplot(grid[row, :])
        ax.set_axis_off()
        box = ax.legend(handles=patches, loc="upper left", ncols=columns, title=title, borderpad=0, borderaxespad=0)
        box.set_alignment("left")
    return figure, axes


def _columns(width: float, names: Sequence[str]) -> int:
    """Of a legend, so that its longest name fits."""
    return max(1, min(len(names), int(width / (0.45 + 0.065 * max(map(len, names))))))


def _show(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#CCCCCC", linewidth=0.6)


def _as_picture(image: UInt8[np.ndarray, "c h w"]) -> np.ndarray:
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]


def _legends(sheet: Sheet, present: Sequence[int], *, has_ignored: bool) -> list[tuple[str, list[Patch]]]:
    """By title, what the colours stand for."""
    colours = class_colours(len(sheet.class_names))
    classes = [(sheet.class_names[k], colours[k]) for k in present] + [("does not count", GREY)] * has_ignored
    legends = [("class", _patches(classes))]
    if sheet.against:
        said = [
            (f"only {sheet.learned} is right", sheet.colours[sheet.learned]),
            (f"only {sheet.against} is right", sheet.colours[sheet.against]),
            ("both are wrong, and differ", BOTH_WRONG),
            ("they agree", SAME),
        ]
        legends.append((f"difference: what {sheet.learned} gains and loses against {sheet.against}", _patches(said)))
    return legends


def _patches(names: Sequence[tuple[str, str]]) -> list[Patch]:
    return [
        Patch(facecolor=colour, edgecolor="#888888", linewidth=0.4, label=plain(shortened(name, _LONGEST_NAME)))
        for name, colour in names
    ]
