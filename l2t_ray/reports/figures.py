"""The pictures of a run. Each function returns a `Figure`; `write_figures` saves them all.

Lines carry their names at their ends instead of in a legend.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import cm, colors, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from l2t_ray.figure_style import COLOURS, DASHES, STYLE, blank_figure
from l2t_ray.headline import ACCURACY, with_unit
from l2t_ray.interfaces import Metric
from l2t_ray.tracking.metrics import PARTS, arms, column

PairLosses = Callable[[np.ndarray], np.ndarray]
"""A loss of pairs: [m, 2] (p_true, p_other) -> [m]."""

_MANY = 150  # points from which a line is smoothed, with the raw one pale behind it
_GRID = 60  # points along each axis of a loss surface
_SMALLEST_P = 0.01


def accuracy_and_error(rows: Sequence[Mapping[str, Any]], headline: Metric = ACCURACY) -> Figure:
    """The headline on the test set and the validation error over the rounds, a line for each arm."""
    error = ("Validation error", "val_error", "error e [nats]", 1.0, "linear")
    return _panels(rows, [headline_panel(headline), error])


def headline_panel(headline: Metric) -> tuple[str, str, str, float, str]:
    """The headline on the test set: title, column, label, factor and scale."""
    label = with_unit(headline.title, headline)
    return f"Test {headline.title}", headline.on_test, label, float(headline.factor), "linear"


def gradient_sums(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The gradient that a loss gives to the student, by both readings of the paper's Figure 1."""
    return _panels(
        rows,
        [
            ("Gradient at the logits", "logit_gradient_sum", r"$\sum |\partial L / \partial z|$", 1.0, "log"),
            ("Gradient at the weights", "gradient_norm", r"$\|\partial L / \partial \theta\|_2$", 1.0, "log"),
        ],
    )


def teacher_steps(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What the teacher receives (hypergradient) and does (its steps on the loss network), on a log scale; how much of
    what it receives is signal; and what becomes of the memory's weight, where the loss has a memory."""
    panels = [
        ("Hypergradient", "hypergradient_norm", r"$\|\partial e / \partial \phi\|_2$", 1.0, "log"),
        ("Teacher's step, norm", "phi_step_norm", r"$\|\phi' - \phi\|_2$", 1.0, "log"),
        ("Teacher's step, largest", "phi_step_max", r"$\max |\phi' - \phi|$", 1.0, "log"),
    ]
    if _has(rows, "snr"):
        panels.append(("Signal of a hypergradient over its noise", "snr", "ratio", 1.0, "linear"))
    if _has(rows, "memory_weight"):
        panels.append(("How much the memory counts", "memory_weight", "weight", 1.0, "linear"))
    return _panels(rows, panels)


def round_time(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Where the time of a round goes: for each arm one bar, divided into the means of its parts."""
    names = arms(rows)
    left = np.zeros(len(names))
    whole = np.array([_mean(rows, arm, "seconds") for arm in names])
    with rc_context(STYLE):
        figure = blank_figure(7.8, 1.3 + 0.45 * len(names))
        ax = figure.subplots()
        for i, part in enumerate(PARTS):
            widths = 1e3 * np.array([_mean(rows, arm, f"seconds_{part}") for arm in names])
            ax.barh(names, widths, left=left, color=COLOURS[i], height=0.6, label=part)
            left = left + widths
        ax.barh(names, 1e3 * whole - left, left=left, color="#BBBBBB", height=0.6, label="other")
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.set(title="Time of a round", xlabel="milliseconds, mean")
        figure.legend(loc="outside lower center", ncols=len(PARTS) + 1, frameon=False)
    return figure


def wrong_labels(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What the students memorise, and which samples the methods listen to: wrong labels against right ones."""
    panels = [("Memorised wrong labels", "reproduced", "share [%]", 100.0, "linear")]
    if _has(rows, "weight_auc"):
        panels.append(("Weight as a detector of wrong labels", "weight_auc", "area under ROC", 1.0, "linear"))
    return _panels(rows, panels)


def sample_weights(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean weight of samples with right labels (solid) and with wrong ones (dashed), a panel for each method."""
    names = [arm for arm in arms(rows) if column(rows, arm, "weight_right")[0]]
    with rc_context(STYLE):
        figure = blank_figure(2.6 * len(names) + 0.6, 2.6)
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, arm in zip(axes, names, strict=True):
            for name, colour, dash in zip(("weight_right", "weight_wrong"), COLOURS, DASHES, strict=False):
                x, y = column(rows, arm, name)
                ax.plot(x, y, color=colour, linestyle=dash, marker="o", markersize=2.5, label=name[7:])
            ax.set(title=arm, xlabel="round")
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        axes[0].set_ylabel("mean weight")
        axes[0].legend(frameon=False, fontsize=8, title="label", title_fontsize=8)
    return figure


def confusion(matrices: Mapping[str, Int[np.ndarray, "c c"]], class_names: Sequence[str]) -> Figure:
    """Test images by class (row) and answer (column), as percentages of the class; a panel for each method."""
    shares = {arm: matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) for arm, matrix in matrices.items()}
    return _matrices([(arm, share) for arm, share in shares.items()], class_names, "class", "answer")


def label_noise(matrices: Sequence[tuple[str, Float[np.ndarray, "c c"]]], class_names: Sequence[str]) -> Figure:
    """Transition matrices of label noise by title: class (row), and the label it is given (column), in percent."""
    return _matrices(matrices, class_names, "class", "label")


def _matrices(
    matrices: Sequence[tuple[str, Float[np.ndarray, "c c"]]], class_names: Sequence[str], row: str, col: str
) -> Figure:
    """Matrices of shares side by side on one scale, with their entries where there is room for them."""
    num_classes = len(class_names)
    is_small = num_classes <= 12
    per_line = min(len(matrices), 4)
    lines = -(-len(matrices) // per_line)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = blank_figure(3.0 * per_line + 0.8, 3.0 * lines + 0.3)
        axes = figure.subplots(lines, per_line, squeeze=False).ravel()
        for ax in axes[len(matrices) :]:
            ax.set_axis_off()
        for ax, (title, shares) in zip(axes, matrices, strict=False):
            ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            ax.set(title=title, xlabel=col, ylabel=row)
            if is_small:
                ax.set_xticks(range(num_classes), class_names, rotation=90, fontsize=6)
                ax.set_yticks(range(num_classes), class_names, fontsize=6)
                for (i, j), share in np.ndenumerate(shares):
                    if share >= 0.005:
                        colour = "white" if share > 0.5 else "#333333"
                        ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=5.5, color=colour)
        bar = figure.colorbar(cm.ScalarMappable(colors.Normalize(0, 100), "Blues"), ax=list(axes), shrink=0.8, pad=0.02)
        bar.set_label("% of the class")
        bar.outline.set_visible(False)
    return figure


def loss_surfaces(snapshots: Sequence[tuple[str, PairLosses]]) -> Figure:
    """The learned loss over (p_true, p_other) at several moments, beside cross-entropy.

    A loss trains the student by its slopes alone: a constant added to it changes nothing. So each surface is shown
    less its own mean, which lets all of them share one colour scale. Contours run at equal heights in all panels.

    Args:
        snapshots: a title and the loss at that moment; the loss maps pairs [m, 2] to losses [m].
    """
    p = np.linspace(_SMALLEST_P, 1 - _SMALLEST_P, _GRID)
    shown = [*snapshots, ("Cross-entropy", cross_entropy)]
    heights = [_height(loss, p) for _, loss in shown]
    limit = max(float(np.quantile(np.abs(z), 0.95)) for z in heights) or 1.0
    norm = colors.Normalize(-limit, limit)
    levels = MaxNLocator(nbins=10, steps=(1, 2, 2.5, 5, 10)).tick_values(-limit, limit)
    with rc_context(STYLE):
        figure = blank_figure(2.15 * len(shown) + 0.9, 2.6)
        axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
        for ax, (title, _), z in zip(axes, shown, heights, strict=True):
            ax.grid(False)
            ax.imshow(
                z, origin="lower", extent=(p[0], p[-1], p[0], p[-1]), cmap="RdBu_r", norm=norm, interpolation="bilinear"
            )
            contours = ax.contour(p, p, z, levels=levels, colors="#333333", linewidths=0.6, linestyles="solid")
            ax.clabel(contours, [level for level in contours.levels if abs(level) < 0.8 * limit], fmt="%g", fontsize=6)
            ax.set(title=title, xlabel=r"$p_\mathrm{true}$", xlim=(0, 1), ylim=(0, 1))
            ax.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            ax.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes[0].set_ylabel(r"$p_\mathrm{other}$")
        bar = figure.colorbar(cm.ScalarMappable(norm, "RdBu_r"), ax=list(axes), shrink=0.8, pad=0.02, extend="both")
        bar.set_label("loss, less its mean")
        bar.outline.set_visible(False)
    return figure


def cross_entropy(pairs: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
    """-log p_true, in the form of a learned loss."""
    return -np.log(pairs[:, 0])


def write_figures(
    run_dir: Path | str,
    rows: Sequence[Mapping[str, Any]],
    loss: Mapping[str, Figure] = {},
    *,
    confusions: Mapping[str, Int[np.ndarray, "c c"]] | None = None,
    noise: Sequence[tuple[str, Float[np.ndarray, "c c"]]] = (),
    class_names: Sequence[str] = (),
    headline: Metric = ACCURACY,
) -> list[Path]:
    """Saves the figures that there are numbers for, as PNG under `run_dir/figures`.

    Args:
        loss: those of the learned loss, by file name (`loss_figures.loss_figures`).
        confusions: as for `confusion`.
        noise: transition matrices by title, as for `label_noise`.
        class_names: of both kinds of matrices.
        headline: the column that stands beside the validation error.

    Returns:
        The files written.
    """
    figures = {}
    if _has(rows, headline.on_test, "val_error"):
        figures[f"{headline.name}_and_error"] = accuracy_and_error(rows, headline)
    if _has(rows, "logit_gradient_sum", "gradient_norm"):
        figures["gradient_sums"] = gradient_sums(rows)
    if _has(rows, "hypergradient_norm", "phi_step_norm", "phi_step_max"):
        figures["teacher_steps"] = teacher_steps(rows)
    if _has(rows, *(f"seconds_{part}" for part in PARTS)):
        figures["round_time"] = round_time(rows)
    if _has(rows, "reproduced"):
        figures["wrong_labels"] = wrong_labels(rows)
    if _has(rows, "weight_right"):
        figures["sample_weights"] = sample_weights(rows)
    if confusions:
        figures["confusion"] = confusion(confusions, class_names)
    if noise:
        figures["label_noise"] = label_noise(noise, class_names)
    return save_figures(run_dir, {**figures, **loss})


def save_figures(run_dir: Path | str, figures: Mapping[str, Figure]) -> list[Path]:
    """Saves figures by name under `run_dir/figures`; returns the files written."""
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with rc_context(STYLE):
        for name, figure in figures.items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1])
    return paths


def _panels(rows: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str, str, float, str]]) -> Figure:
    """A row of panels, each a column of the table over the rounds: (title, column, label, factor, scale)."""
    names = arms(rows)
    with rc_context(STYLE):
        figure = blank_figure(3.9 * len(panels), 2.9)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, name, label, factor, scale) in zip(axes, panels, strict=True):
            ends = []
            for i, arm in enumerate(names):
                x, y = (np.asarray(v, dtype=float) for v in column(rows, arm, name))
                y = y * factor
                keep = np.isfinite(y) & ((y > 0) if scale == "log" else True)
                if keep.any():
                    ends.append((arm, i, *draw_line(ax, x[keep], y[keep], i, is_log=scale == "log")))
            ax.set(title=title, xlabel="round", ylabel=label, yscale=scale)
            if ends:
                ax.margins(x=0.02)
                ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                if scale == "log" and np.divide(*ax.get_ylim()[::-1]) > 10:
                    ax.yaxis.set_minor_formatter(NullFormatter())
                label_ends(ax, ends)
            else:
                ax.text(0.5, 0.5, "no values", transform=ax.transAxes, ha="center", va="center", color="#888888")
    return figure


def draw_line(ax: Axes, x: np.ndarray, y: np.ndarray, index: int, *, is_log: bool) -> tuple[float, float]:
    """Draws the line of one arm, smoothed where it is long, and returns where it ends."""
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)]
    if len(x) >= _MANY:
        ax.plot(x, y, color=colour, alpha=0.18, linewidth=0.6, label="_raw")
        y = np.exp(_smooth(np.log(y))) if is_log else _smooth(y)
    ax.plot(x, y, color=colour, linestyle=dash, marker="o" if len(x) <= 30 else "", markersize=2.5)
    return float(x[-1]), float(y[-1])


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred running mean over 1/25 of the points, of those there are at the ends."""
    half = max(1, len(y) // 50)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    first, last = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    return (sums[last] - sums[first]) / (last - first)


def label_ends(ax: Axes, ends: Sequence[tuple[str, int, float, float]], *, gap: float = 0.08) -> None:
    """Writes names right of their lines, moved apart where they would overlap.

    Args:
        ends: name, number of its colour, and where the line ends.
        gap: between two names, as a share of the height.
    """
    # From the limits, not from transData: that one changes when the figure is laid out.
    low, high = ax.get_ylim()
    scale = np.log if ax.get_yscale() == "log" else np.asarray
    at = {arm: float((scale(y) - scale(low)) / (scale(high) - scale(low))) for arm, _, _, y in ends}
    order = sorted(ends, key=lambda end: at[end[0]])
    for _ in range(100):  # neighbours push each other apart evenly, so that a group stays around its lines
        for (lower, *_), (upper, *_) in pairwise(order):
            overlap = gap - (at[upper] - at[lower])
            if overlap > 0:
                at[lower], at[upper] = at[lower] - overlap / 2, at[upper] + overlap / 2
    for arm, index, _, _ in order:
        ax.annotate(
            arm,
            (1.0, at[arm]),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[index % len(COLOURS)],
            fontsize=8,
            annotation_clip=False,
            parse_math=False,
        )


def _height(loss: PairLosses, p: np.ndarray) -> np.ndarray:
    """The loss on the grid, [p_other, p_true], less its mean."""
    p_true, p_other = np.meshgrid(p, p)
    z = np.asarray(loss(np.stack([p_true.ravel(), p_other.ravel()], axis=1)), dtype=float).reshape(p_true.shape)
    return z - z.mean()


def _mean(rows: Sequence[Mapping[str, Any]], arm: str, name: str) -> float:
    _, values = column(rows, arm, name)
    return float(np.mean(values)) if values else 0.0


def _has(rows: Sequence[Mapping[str, Any]], *names: str) -> bool:
    return any(row.get(name) is not None for row in rows for name in names)
