"""Figures hold what their rows say: the lines, the numbers in them, the labels; and nothing global changes."""

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from l2t_ray.headline import MIOU
from l2t_ray.reports import figures


def rows(num_rounds=20):
    result = []
    for arm, scale in (("cross_entropy", 1.0), ("l2t_dln", 2.0)):
        for r in range(num_rounds):
            row = {
                "arm": arm,
                "round": r,
                "val_error": scale / (r + 1),
                "gradient_norm": scale,
                "logit_gradient_sum": scale,
            }
            row["test_accuracy"] = r / num_rounds if r % 5 == 0 else None
            if arm == "l2t_dln":
                row |= {
                    "hypergradient_norm": 0.1,
                    "phi_step_norm": 0.01 * (r + 1),
                    "phi_step_max": 0.0 if r == 0 else 0.001,
                }
            result.append(row)
    return result


def learned(pairs):
    return pairs[:, 1] - 2 * pairs[:, 0] + 100.0


@pytest.mark.parametrize(
    ("draw", "labels", "num_lines"),
    [
        (figures.accuracy_and_error, ["accuracy [%]", "error e [nats]"], 2),
        (figures.gradient_sums, [r"$\sum |\partial L / \partial z|$", r"$\|\partial L / \partial \theta\|_2$"], 2),
        (
            figures.teacher_steps,
            [r"$\|\partial e / \partial \phi\|_2$", r"$\|\phi' - \phi\|_2$", r"$\max |\phi' - \phi|$"],
            1,
        ),
    ],
)
def test_a_labelled_line_for_each_arm(draw, labels, num_lines):
    axes = draw(rows()).axes
    assert [ax.get_ylabel() for ax in axes] == labels
    assert all(ax.get_xlabel() == "round" for ax in axes)
    assert [len(ax.lines) for ax in axes] == [num_lines] * len(axes)
    names = ["l2t_dln"] if num_lines == 1 else ["cross_entropy", "l2t_dln"]
    assert all(sorted(text.get_text() for text in ax.texts) == names for ax in axes)


def test_a_memory_has_a_panel_of_its_own():
    weighed = [row | ({"memory_weight": 1 - row["round"] / 40} if row["arm"] == "l2t_dln" else {}) for row in rows()]
    assert len(figures.teacher_steps(rows()).axes) == 3
    *_, ax = figures.teacher_steps(weighed).axes
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), 1 - np.arange(20) / 40)


def test_the_bars_of_a_round_reach_its_time():
    spent = {"data": 0.001, "unroll": 0.02, "hypergradient": 0.03, "collectives": 0.004, "teacher": 0.005}
    parts = {f"seconds_{part}": seconds for part, seconds in spent.items()}
    timed = [{**row, "seconds": 0.07, **parts} for row in rows()]
    (ax,) = figures.round_time(timed).axes
    ends = [max(bar.get_x() + bar.get_width() for bar in bars) for bars in ax.containers]
    np.testing.assert_allclose(ends, [1, 21, 51, 55, 60, 70])  # one on top of the other, and what is left
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cross_entropy", "l2t_dln"]


def test_lines_show_the_rows():
    accuracy, error = figures.accuracy_and_error(rows()).axes
    np.testing.assert_allclose(accuracy.lines[0].get_xydata(), [(0, 0), (5, 25), (10, 50), (15, 75)])
    np.testing.assert_allclose(error.lines[1].get_ydata(), 2 / np.arange(1, 21))
    steps = figures.teacher_steps(rows()).axes
    assert all(ax.get_yscale() == "log" for ax in steps)
    assert len(steps[2].lines[0].get_xdata()) == 19  # a step of zero has no place on a log scale


def test_long_runs_are_smoothed_over_the_raw_values():
    error = figures.accuracy_and_error(rows(400)).axes[1]
    raw, smooth = error.lines[0], error.lines[1]
    assert raw.get_alpha() < 0.5 and len(smooth.get_xdata()) == 400
    np.testing.assert_allclose(smooth.get_ydata()[200], raw.get_ydata()[192:209].mean())
    constant = figures.gradient_sums(rows(400)).axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(constant, 1.0)  # the ends of a smoothed constant do not sag


def test_end_labels_do_not_overlap():
    close = [{"arm": f"arm{i}", "round": r, "val_error": 1.0 + 1e-6 * i} for i in range(6) for r in range(2)]
    places = sorted(text.xy[1] for text in figures.accuracy_and_error(close).axes[1].texts)
    assert len(places) == 6 and np.diff(places).min() > 0.07


def test_loss_surfaces_share_a_scale_and_ignore_constants():
    figure = figures.loss_surfaces([("Start", learned), ("End", lambda pairs: learned(pairs) + 7.0)])
    *panels, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in panels] == ["Start", "End", "Cross-entropy"]
    assert panels[0].get_ylabel() == r"$p_\mathrm{other}$" and bar.get_ylabel() == "loss, less its mean"
    images = [ax.images[0] for ax in panels]
    assert len({id(image.norm) for image in images}) == 1
    first, second = (np.asarray(image.get_array()) for image in images[:2])
    np.testing.assert_allclose(first, second, atol=1e-9)
    assert first[0, 0] > first[0, -1] and first[-1, 0] > first[0, 0]  # falls along p_true (x), rises along p_other (y)


def test_write_figures_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    paths = figures.write_figures(tmp_path, rows(), {"loss_surfaces": figures.loss_surfaces([("End", learned)])})
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "accuracy_and_error.png", "gradient_sums.png", "loss_surfaces.png", "teacher_steps.png",
    ]  # fmt: skip
    assert all(p.read_bytes()[:4] == b"\x89PNG" and p.stat().st_size > 10_000 for p in paths)
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # pyplot holds none of them


def test_only_figures_with_numbers_are_written(tmp_path):
    plain = [{"arm": "cross_entropy", "round": r, "val_error": 1.0} for r in range(3)]
    assert [p.stem for p in figures.write_figures(tmp_path, plain)] == ["accuracy_and_error"]


def test_the_headline_stands_beside_the_error(tmp_path):
    rows = [{"arm": "cross_entropy", "round": r, "test_miou": 0.5, "val_error": 1.0} for r in range(3)]
    assert [p.stem for p in figures.write_figures(tmp_path, rows, headline=MIOU)] == ["miou_and_error"]
    left = figures.accuracy_and_error(rows, MIOU).axes[0]
    assert (left.get_title(loc="left"), left.get_ylabel()) == ("Test mIoU", "mIoU [%]")
    assert left.lines[0].get_ydata().tolist() == [50, 50, 50]


def test_matrices_hold_their_entries_in_percent():
    shares = np.array([[0.75, 0.25], [0.0, 1.0]])
    figure = figures.label_noise([("drawn from", shares), ("realised", shares)], ["cat", "dog"])
    first, second, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["drawn from", "realised"]
    assert [text.get_text() for text in first.texts] == ["75", "25", "100"] and first.get_ylabel() == "class"
    assert bar.get_ylabel() == "% of the class"
    counts = figures.confusion({"gce": np.array([[3, 1], [0, 5]])}, ["cat", "dog"])
    np.testing.assert_allclose(counts.axes[0].images[0].get_array(), shares)


def test_weights_of_right_and_wrong_labels_stand_side_by_side():
    weighed = [
        {"arm": arm, "round": r, "reproduced": 0.5, "weight_auc": 0.7, "weight_right": 2.0, "weight_wrong": 1.0}
        for arm in ("mw_net", "l2r")
        for r in range(3)
    ]
    axes = figures.sample_weights([*weighed, {"arm": "gce", "round": 0, "reproduced": 0.5}]).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["mw_net", "l2r"]
    assert [line.get_ydata()[0] for line in axes[0].lines] == [2.0, 1.0]
    given_back, detector = figures.wrong_labels(weighed).axes
    assert given_back.lines[0].get_ydata()[0] == 50 and detector.lines[1].get_ydata()[0] == 0.7
    assert len(figures.wrong_labels([{"arm": "gce", "round": 0, "reproduced": 0.5}]).axes) == 1
