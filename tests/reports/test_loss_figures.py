"""The pictures of a learned loss say what its family gave to be drawn, at each moment."""

import numpy as np
import pytest
import torch

from l2t_ray.core.loss.family import Bars, Curve, Surface
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.reports import loss_figures

FAMILY = TermLoss({"ce": ("sky", "road"), "overlap": ("all",)}, knots={"ce": [0.5, 2.0]})


def moments():
    numbers = (torch.zeros(6), 0.1 * torch.arange(6.0))
    return [(f"round {i}", LearnedLoss(FAMILY, phi).pictures()) for i, phi in enumerate(numbers)]


def test_each_kind_of_picture_has_a_figure():
    assert list(loss_figures.loss_figures(moments())) == ["loss_weights", "loss_curves"]
    surface = Surface(lambda pairs: pairs[:, 1] - pairs[:, 0])
    assert list(loss_figures.loss_figures([("End", [surface])])) == ["loss_surfaces"]
    assert loss_figures.loss_figures([]) == {}


def test_weights_are_bars_by_name_beside_what_they_were():
    ce, overlap = loss_figures.loss_weights(moments()).axes
    assert [ax.get_title(loc="left") for ax in (ce, overlap)] == ["weights of ce", "weights of overlap"]
    assert [text.get_text() for text in ce.get_yticklabels()] == ["sky", "road"]
    last = FAMILY.weights(0.1 * torch.arange(6.0))["ce"].tolist()
    np.testing.assert_allclose([bar.get_width() for bar in ce.patches], last)
    before, start = ce.lines
    np.testing.assert_allclose(before.get_xdata(), [1, 1], rtol=1e-6)
    assert set(start.get_xdata()) == {1.0}
    assert [text.get_text() for text in ce.figure.legends[0].get_texts()] == ["round 0", "round 1"]


def test_of_many_weights_those_that_moved_are_shown():
    numbers = {str(i): 1.0 + (i % 2) * i for i in range(100)}
    (ax,) = loss_figures.loss_weights([("End", [Bars("weights", numbers, start=1.0)])]).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == [str(i) for i in range(21, 100, 2)]


def test_curves_stand_beside_the_identity():
    (ax,) = loss_figures.loss_curves([("End", [Curve("curve of ce", (0.0, 1.0, 2.0), (0.0, 0.5, 2.5))])]).axes
    identity, curve = ax.lines
    assert list(identity.get_ydata()) == [0, 1, 2] and list(curve.get_ydata()) == [0, 0.5, 2.5]
    assert ax.get_xlabel() == "value of the term" and ax.get_title(loc="left") == "curve of ce"


def test_a_surface_reads_and_gives_arrays():
    losses = loss_figures.on_arrays(Surface(lambda pairs: pairs[:, 0] + torch.ones(1, requires_grad=True)))
    np.testing.assert_allclose(losses(np.array([[0.5, 0.2], [0.1, 0.0]])), [1.5, 1.1], rtol=1e-6)


def followed_rows(numbers):
    return [
        {"arm": "l2t_dln", "round": r, **{f"weight_{name}": 1 + x * r for name, x in numbers.items()}} for r in range(5)
    ]


def test_what_is_weighed_up_is_a_line_over_the_rounds_by_its_own_name():
    rows = followed_rows({"0": 0.1, "1": -0.05})
    bars = Bars("weights of classes", {"0": 1.4, "1": 0.8}, 1.0, "weight_", are_classes=True)
    untold = Bars("labels that change", {"0": 0.1}, 0.0)
    (only,) = loss_figures.followed_numbers([("start", [bars]), ("end", [bars, untold])], rows, ["sky", "pole"])
    np.testing.assert_allclose(only.lines["sky"], [range(5), [1, 1.1, 1.2, 1.3, 1.4]])
    (ax,) = loss_figures.weights_over_rounds([only]).axes
    assert ax.get_yscale() == "log" and [text.get_text() for text in ax.texts] == ["pole", "sky"]
    low, high = ax.get_ylim()
    assert low * high == pytest.approx(1) and high > 1.4
    figures = loss_figures.loss_figures([("end", [bars])], rows, ["sky", "pole"])
    names = [label.get_text() for label in figures["loss_weights"].axes[0].get_yticklabels()]
    assert "loss_weights_over_rounds" in figures and names == ["sky", "pole"]


def test_slopes_of_a_curve_are_lines_by_the_stretch_that_they_are_of():
    rows = [{"round": r, **FAMILY.report(0.01 * r * torch.arange(6.0))} for r in range(3)]
    *_, curve = loss_figures.followed_numbers(moments(), rows)
    assert list(curve.lines) == ["0 to 0.5", "0.5 to 2", "above 2"]
    assert curve.lines["above 2"][1][-1] == pytest.approx(rows[2]["slope_ce_2"])


def test_of_many_lines_those_that_end_furthest_from_the_start_are_named():
    lines = {f"class {k}": (np.arange(3.0), np.array([1, 1, 1 + 0.01 * k])) for k in range(30)}
    (ax,) = loss_figures.weights_over_rounds([loss_figures.Followed("weights", 1.0, lines)]).axes
    assert sorted(text.get_text() for text in ax.texts) == sorted(f"class {k}" for k in range(18, 30))
    assert len(ax.lines) == 31


def test_numbers_that_no_column_follows_or_a_logarithm_cannot_show_make_no_line():
    bars = Bars("weights", {"a": 1.0, "b": 1.0}, 1.0, "weight_")
    rows = [{"round": 0, "weight_a": -1.0}, {"round": 1, "weight_a": None}]
    assert loss_figures.followed_numbers([("end", [bars])], rows) == [] == loss_figures.followed_numbers([], rows)
