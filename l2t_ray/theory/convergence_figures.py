"""The figures of docs/convergence.md. Colours stay apart for colour-blind readers (Okabe and Ito)."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from l2t_ray.figure_style import COLOURS, STYLE
from l2t_ray.theory.alternating import descent_path, gradient_of, simultaneous_step
from l2t_ray.theory.escape_studies import ESCAPE_RADIUS, START_RADIUS
from l2t_ray.theory.findings import Findings
from l2t_ray.theory.random_hessians import HessianChecks
from l2t_ray.theory.saddles import quartic

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, _ = COLOURS
GREY = "#5F5F5F"
PALETTE_SIZE = 96  # colours in a file: few enough for some tens of kB, more than the eye misses
MAX_DOTS = 6000
SHIFT = 2  # between curves that would lie on top of each other


def draw_all(findings: Findings, directory: Path) -> None:
    """Writes the four figures as `directory/convergence_*.png`."""
    directory.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        save(draw_escape_time(findings), directory / "convergence_escape_time.png")
        save(draw_growth(findings), directory / "convergence_growth.png")
        save(draw_gain(findings), directory / "convergence_gain.png")
        save(draw_trajectories(), directory / "convergence_trajectories.png")


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of few colours: a fifth of the size, and no visible difference for line drawings."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    Image.open(buffer).convert("RGB").quantize(PALETTE_SIZE).save(path, optimize=True)


def draw_escape_time(findings: Findings) -> Figure:
    """Steps to escape against the step size, and against the distance of the start."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = findings.by_step_size
    eta = [row.eta for row in rows]
    low, high = [row.alternating_low for row in rows], [row.alternating_high for row in rows]
    predicted, plain = [row.predicted for row in rows], [row.simultaneous for row in rows]
    left.fill_between(eta, low, high, color=BLUE, alpha=0.18, linewidth=0, label="10–90 % of starts")
    left.loglog(eta, [row.conclusion_1 for row in rows], color=ORANGE, linestyle="--", label="limit by Conclusion 1")
    left.loglog(eta, predicted, color=GREY, linewidth=1, label=r"$\log(R/r_0)\,/\,\log\lambda_{\max}$")
    left.loglog(eta, plain, "s", color=GREEN, markersize=6, fillstyle="none", label="gradient descent")
    left.loglog(eta, [row.alternating for row in rows], "o", color=BLUE, markersize=4, label="alternating")
    left.set(
        xlabel=r"step size $\eta$ (here $\eta C_{\max}=\eta$)",
        ylabel=f"steps from $r_0=10^{{-6}}$ to $R={ESCAPE_RADIUS}$",
        title="Quartic saddle",
    )
    left.legend()

    starts = findings.by_start
    radius = np.array([row.start_radius for row in starts])
    middle = len(radius) // 2
    right.loglog(radius, [row.degenerate for row in starts], "D-", color=ORANGE, markersize=5)
    right.loglog(radius, [row.strict for row in starts], "o-", color=BLUE, markersize=5)
    beside = {"textcoords": "offset points"}
    at = (radius[middle], starts[middle].degenerate)
    right.annotate("degenerate saddle:\ntime grows like $1/r_0$", at, xytext=(8, 6), color=ORANGE, **beside)
    at = (radius[middle], starts[middle].strict)
    right.annotate("strict saddle:\nlike $\\log(1/r_0)$", at, xytext=(-50, 16), color=BLUE, **beside)
    right.set(
        xlabel="distance of the start $r_0$",
        ylabel=f"steps to $R={ESCAPE_RADIUS}$",
        title="Control: a saddle that is not strict",
    )
    return figure


def draw_growth(findings: Findings) -> Figure:
    """Distance along the escaping direction at each strict saddle; and a student that descends another loss."""
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = zip((BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW), "osD^vP", strict=True)
    for index, (row, (colour, marker)) in enumerate(zip(findings.growth, looks, strict=False)):
        distance = findings.distances[row.name].numpy()
        grown = np.arange(len(distance)) * row.log_factor
        apart = SHIFT * index + grown
        left.semilogy(apart, distance[0] * np.exp(grown), color=colour, linewidth=1)
        label = rf"{row.name}, {row.log_factor:.3f}"
        left.semilogy(apart, distance, marker, color=colour, markersize=4, markevery=len(grown) // 12 + 1, label=label)
    left.set(
        xlabel=rf"$k\,\log\lambda_{{\max}}$ after $k$ steps (curves set {SHIFT} apart)",
        ylabel=r"$|P_d(u^k-u^*)|$",
        title="Dots: measured. Lines: the predicted slope",
        xlim=(-1, 14 + SHIFT * len(findings.growth)),
        ylim=(START_RADIUS / 1e5, 1),
    )
    left.legend(loc="lower right", title=r"saddle, $\log\lambda_{\max}$", title_fontsize=8)

    looks = zip((BLUE, GREEN, YELLOW, ORANGE), "osD^", strict=True)
    for (scale, student), (colour, marker) in zip(reversed(findings.students), looks, strict=True):
        distance = student.distances.numpy() / student.distances[0].item()
        steps = np.arange(len(distance)) * student.steps_per_round
        right.semilogy(steps, np.exp(student.of_learned_loss * steps), color=colour, linewidth=1)
        right.semilogy(steps, distance, marker, color=colour, markersize=5, label=rf"random $\phi$, times {scale:g}")
    student = findings.students[0][1]
    steps = np.arange(len(student.distances)) * student.steps_per_round
    right.semilogy(steps, np.exp(student.of_error * steps), "--", color=GREY, label="if it descended $e$")
    right.set(
        xlabel="student steps",
        ylabel="growth of the student, from 1",
        title=r"L2T-DLN: the student descends $L_\phi$, not $e$",
    )
    right.legend(loc="upper left")
    return figure


def draw_gain(findings: Findings) -> Figure:
    """(lambda_max - 1) / (eta gamma) of random Hessians, above both bounds."""
    checks = HessianChecks(*(torch.cat(column) for column in zip(*(c for _, c in findings.hessians), strict=True)))
    shown = torch.randperm(len(checks.gain), generator=torch.Generator().manual_seed(0))[:MAX_DOTS]
    x, y, is_complex = (column[shown].numpy() for column in (checks.eta_c_max, checks.gain, checks.is_complex))
    num_below = int(checks.violates_sharp_bound.sum())
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0.01, 1, color="#F3F6F9", linewidth=0)
    axes.scatter(x[~is_complex], y[~is_complex], s=3, color=BLUE, linewidth=0, label="spectrum real")
    axes.scatter(
        x[is_complex], y[is_complex], s=9, color=ORANGE, marker="^", linewidth=0, label="spectrum partly complex"
    )
    axes.axhline(1, color="black", linewidth=1.6, zorder=0.5)
    axes.axhspan(1 / 3, 1 / 2, color=GREEN, alpha=0.35, linewidth=0)
    axes.text(10.6, 1, "sharp\nbound", va="center", fontsize=8)
    axes.text(10.6, 0.41, "Conclusion 1,\n$1/(1+C/C_{\\max})$", va="center", color=GREEN, fontsize=8)
    axes.text(0.0112, 0.62, r"step-size condition $\eta\leq 1/C_{\max}$ holds", color=GREY, fontsize=8)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(0.01, 10),
        ylim=(0.28, max(20.0, 1.3 * float(y.max()))),
        xlabel=r"$\eta\,C_{\max}$",
        ylabel=r"$(\lambda_{\max}(M^{-1}G)-1)\,/\,(\eta\gamma)$",
        title=f"{len(shown):,} of {len(checks.gain):,} checks; of all, {num_below} below the sharp bound",
    )
    axes.legend(loc="upper left", markerscale=2)
    return figure


def draw_trajectories() -> Figure:
    """Alternating and plain gradient descent leaving the quartic saddle."""
    saddle = quartic()
    gradient = gradient_of(saddle.function)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    grid_x, grid_y = np.meshgrid(np.linspace(-1.15, 1.15, 240), np.linspace(-0.85, 0.85, 200))
    points = torch.from_numpy(np.stack((grid_x, grid_y), axis=-1).reshape(-1, 2))
    values = torch.func.vmap(saddle.function)(points).numpy().reshape(grid_x.shape)
    axes.contour(grid_x, grid_y, values, levels=24, colors="#C9C9C9", linewidths=0.7)
    eta, starts = 0.4, torch.tensor([[0.36, 0.78], [-0.52, -0.78]], dtype=torch.float64)
    plain = descent_path(lambda u: simultaneous_step(gradient, u, eta), starts, 25)
    stairs = _half_steps(gradient, starts, eta, num_steps=25)
    for index in range(len(starts)):
        _line(axes, plain[:, index], GREEN, "s", "gradient descent" if index == 0 else None, every=1)
        _line(
            axes,
            stairs[:, index],
            BLUE,
            "o",
            "alternating: block 1 ($x$), then block 2 ($y$)" if index == 0 else None,
            every=2,
        )
    axes.plot(*starts.T.numpy(), "o", color="black", markersize=4)
    axes.plot(0, 0, "X", color=ORANGE, markersize=9, label="strict saddle")
    axes.grid(False)
    axes.set(xlabel="$x$ (block 1)", ylabel="$y$ (block 2)", title=rf"Leaving the quartic saddle, $\eta={eta}$")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _half_steps(gradient, start: torch.Tensor, eta: float, *, num_steps: int) -> torch.Tensor:
    """The path of alternating descent with the points between its two moves, for a picture of both."""
    points = [start]
    for index in range(2 * num_steps):
        moved = points[-1].clone()
        block = index % 2
        moved[:, block] -= eta * gradient(points[-1])[:, block]
        points.append(moved)
    return torch.stack(points)


def _line(axes: Axes, path: torch.Tensor, colour: str, marker: str, label: str | None, *, every: int) -> None:
    x, y = path.T.numpy()
    axes.plot(x, y, marker + "-", color=colour, markersize=3.5, linewidth=1.1, markevery=every, label=label)
