"""Charts of what students answer hold their numbers, arm by arm."""

import numpy as np

from l2t_ray.reports.answers import answer_figures, by_class, curves
from l2t_ray.reports.sheets import Sheet
from l2t_ray.tasks.shown import ByClass, ClassMatrix, Curves

NOTHING = Sheet([], [], {}, (), learned="l2t_dln")


def overlaps(values, mean):
    return ByClass("class_iou", "Test IoU by class", "IoU [%]", values, ("mIoU", mean))


def test_each_class_has_a_bar_for_each_arm_in_the_order_of_classes():
    charts = {
        "cross_entropy": overlaps({"sky": 0.5, "car": 0.1}, 0.3),
        "l2t_dln": overlaps({"sky": 0.4, "car": 0.2, "pole": 0.6}, 0.4),
    }
    (ax,) = by_class(charts).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mIoU", "sky", "car", "pole"]
    first, second = ([bar.get_width() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose(first, [30, 50, 10, np.nan])
    np.testing.assert_allclose(second, [40, 40, 20, 60])


def test_of_many_classes_those_are_shown_that_differ_most():
    names = [f"class {k}" for k in range(60)]
    charts = {
        "cross_entropy": overlaps(dict.fromkeys(names, 0.5), 0.5),
        "l2t_dln": overlaps({name: 0.5 + k / 200 for k, name in enumerate(names)}, 0.6),
    }
    (ax,) = by_class(charts).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mIoU", *names[20:]]
    assert ax.get_title(loc="left") == "Test IoU by class: the 40 that differ most"


def test_charts_are_drawn_by_their_kind_and_no_examples_make_no_sheet():
    charts = {"l2t_dln": [ClassMatrix(np.eye(2, dtype=int)), overlaps({"sky": 0.5}, 0.5)]}
    assert list(answer_figures(NOTHING, charts)) == ["class_iou"]
    assert answer_figures(NOTHING, {}) == {}


def test_a_line_for_each_arm_says_what_the_area_under_it_is():
    x = np.linspace(0, 1, 101)
    given = {
        arm: Curves("precision_recall", "recall", "precision", {"AP50": (x, height - x / 2), "AP75": (x, x * 0)})
        for arm, height in (("darknet", 0.5), ("l2t_dln", 1.0))
    }
    left, right = curves(given).axes
    assert [line.get_ydata()[0] for line in left.lines] == [0.5, 1.0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["darknet: 25.0 %", "l2t_dln: 75.0 %"]
    assert right.get_title(loc="left") == "AP75" and right.lines[1].get_ydata().max() == 0
    assert list(answer_figures(NOTHING, {arm: [own] for arm, own in given.items()})) == ["precision_recall"]
