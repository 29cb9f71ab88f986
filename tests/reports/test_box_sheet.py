"""Boxes on test images: which are shown, which of them are right, and that they are drawn where they are."""

import numpy as np
from matplotlib.colors import to_rgba

from l2t_ray.figure_style import GREY, class_colours
from l2t_ray.reports.box_sheet import box_sheet, right, surest
from l2t_ray.reports.sheets import Sheet
from l2t_ray.tasks.shown import BoxMarks

NAMES = ("cell", "plate$let")
TRUTH = BoxMarks(
    np.array([[2, 2, 12, 12], [20, 2, 30, 12], [0, 20, 40, 40]]),
    np.array([0, 1, 0]),
    crowd=np.array([False, False, True]),
)


def found(*boxes):
    corners, labels, scores = zip(*boxes, strict=True)
    return BoxMarks(np.array(corners, dtype=float), np.array(labels), np.array(scores))


def test_an_object_is_found_once_by_a_box_of_its_class_and_a_crowd_by_any_number():
    answers = found(
        ([2, 2, 12, 12], 0, 0.9),
        ([2, 2, 12, 13], 0, 0.8),  # a double
        ([20, 2, 30, 12], 0, 0.7),  # of another class
        ([20, 2, 30, 8], 1, 0.6),
        ([0, 20, 10, 30], 0, 0.5),
        ([5, 22, 15, 32], 0, 0.4),
        ([60, 60, 70, 70], 1, 0.3),
    )
    assert right(answers, TRUTH).tolist() == [True, False, False, True, True, True, False]
    assert right(answers, BoxMarks(np.zeros((0, 4)), np.zeros(0, dtype=int))).tolist() == [False] * 7


def test_as_many_boxes_are_shown_as_there_are_objects_and_all_that_are_sure():
    unsure = found(([0, 0, 1, 1], 0, 0.1), ([0, 0, 2, 2], 1, 0.3), ([0, 0, 3, 3], 0, 0.2))
    assert surest(unsure, TRUTH).scores.tolist() == [0.3, 0.2]
    sure = found(*(([0, 0, 1, 1], 0, score) for score in (0.9, 0.8, 0.7, 0.4)))
    assert surest(sure, TRUTH).scores.tolist() == [0.9, 0.8, 0.7]


def test_boxes_are_drawn_in_their_colours_dashed_where_they_are_wrong():
    said = found(([2, 2, 12, 12], 0, 0.9), ([60, 60, 70, 70], 1, 0.8))
    nothing = BoxMarks(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0))
    image = np.zeros((1, 80, 80), dtype=np.uint8)
    figure = box_sheet(Sheet([image], [TRUTH], {"darknet": [nothing], "l2t_dln": [said]}, NAMES, learned="l2t_dln"))
    truth, control, learned = (ax for ax in figure.axes if ax.images)
    first, second = class_colours(2)
    of = {box.get_xy(): box for box in truth.patches}
    assert [np.allclose(of[x, y].get_edgecolor(), to_rgba(c)) for (x, y), c in (
        ((1.5, 1.5), first), ((19.5, 1.5), second), ((-0.5, 19.5), GREY),
    )] == [True] * 3  # fmt: skip
    assert not control.patches and control.get_xlabel() == "0 of 2 found, 0 wrong"
    lines = {box.get_xy(): box.get_linestyle() for box in learned.patches}
    assert lines[1.5, 1.5] in ("-", "solid") and lines[59.5, 59.5] not in ("-", "solid")
    assert learned.get_xlabel() == "1 of 2 found, 1 wrong"
    assert [text.get_text() for text in learned.texts] == ["plate$let 0.80", "cell 0.90"]
    figure.draw_without_rendering()  # a dollar sign is no formula
