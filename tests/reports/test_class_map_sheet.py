"""Sheets of test images: each panel's colours say what the maps say, pixel by pixel."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from l2t_ray.figure_style import COLOURS, GREY, class_colours
from l2t_ray.reports.class_map_sheet import BOTH_WRONG, SAME, class_map_sheet
from l2t_ray.reports.sheets import Sheet
from l2t_ray.tasks.shown import ClassMap

IGNORE = 255
NAMES = ("sky", "road", "car")
# What the learned arm and the control say of seven pixels: both right, only the learned, only the control, both wrong
# alike, both wrong and differing, and two that do not count.
TRUTH = [0, 0, 0, 0, 0, IGNORE, 1]
OWN = [0, 0, 1, 1, 1, 0, 1]
OTHER = [0, 1, 0, 1, 2, 1, 1]


def sheet(**changed):
    def map_of(row):
        return ClassMap(np.array([row, row]), IGNORE)

    given = {
        "images": [np.full((3, 2, 7), 60, dtype=np.uint8)],
        "truths": [map_of(TRUTH)],
        "answers": {"cross_entropy": [map_of(OTHER)], "l2t_dln": [map_of(OWN)]},
        "class_names": NAMES,
        "learned": "l2t_dln",
    }
    return Sheet(**given | changed)


def panels(figure):
    """The pictures by the titles of their columns, of the first row."""
    return {ax.get_title(loc="center"): np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images}


def colours(picture):
    return [tuple(pixel.tolist()) for pixel in picture[0]]


def expected(names):
    return [tuple(round(255 * part) for part in to_rgb(name)) for name in names]


def test_the_difference_has_the_colour_of_the_arm_that_alone_is_right():
    control, learned = COLOURS[:2]
    assert colours(panels(class_map_sheet(sheet()))["difference"]) == expected(
        [SAME, learned, control, SAME, BOTH_WRONG, GREY, SAME]
    )


def test_classes_have_their_colours_and_what_does_not_count_is_grey_in_every_map():
    sky, road, car = class_colours(3)
    shown = panels(class_map_sheet(sheet()))
    assert list(shown) == ["image", "truth", "cross_entropy", "l2t_dln", "difference"]
    assert colours(shown["truth"]) == expected([sky, sky, sky, sky, sky, GREY, road])
    assert colours(shown["cross_entropy"]) == expected([sky, road, sky, road, car, GREY, road])


def test_gains_and_losses_are_shares_of_the_pixels_that_count():
    *_, difference = [ax for ax in class_map_sheet(sheet()).axes if ax.images]
    assert difference.get_xlabel() == "gains 16.7 %, loses 16.7 %"  # one of six


def test_a_legend_names_the_classes_that_are_seen_and_the_colours_of_the_difference():
    texts = [
        [text.get_text() for text in ax.get_legend().get_texts()]
        for ax in class_map_sheet(sheet()).axes
        if ax.get_legend()
    ]
    assert texts[0] == [*NAMES, "does not count"]
    assert texts[1][:2] == ["only l2t_dln is right", "only cross_entropy is right"]


def test_what_is_filled_up_below_and_at_the_right_is_cut_off():
    filled = np.full((5, 9), IGNORE)
    filled[:2, :7] = [TRUTH, TRUTH]
    said = ClassMap(np.zeros((5, 9), dtype=int), IGNORE)
    image = np.zeros((1, 5, 9), dtype=np.uint8)
    given = sheet(images=[image], truths=[ClassMap(filled, IGNORE)], answers={"gce": [said], "l2t_dln": [said]})
    assert {picture.shape[:2] for picture in panels(class_map_sheet(given)).values()} == {(2, 7)}


@pytest.mark.parametrize("arms", [["l2t_dln"], ["cross_entropy"]])
def test_one_arm_alone_differs_from_nobody(arms):
    answers = {arm: own for arm, own in sheet().answers.items() if arm in arms}
    assert list(panels(class_map_sheet(sheet(answers=answers)))) == ["image", "truth", *arms]


def test_large_pictures_are_thinned_out_but_keep_their_coordinates():
    large = np.zeros((4, 1300), dtype=int)
    given = sheet(
        images=[np.zeros((1, 4, 1300), dtype=np.uint8)],
        truths=[ClassMap(large, IGNORE)],
        answers={"l2t_dln": [ClassMap(large, IGNORE)]},
    )
    (image,) = class_map_sheet(given).axes[0].images
    assert image.get_array().shape == (2, 434) and image.get_extent() == [-0.5, 1299.5, 3.5, -0.5]


def test_names_that_begin_with_an_underscore_or_have_a_dollar_are_shown_as_they_are():
    figure = class_map_sheet(sheet(class_names=("_background_", "a$b$", "car")))
    legend = next(ax.get_legend() for ax in figure.axes if ax.get_legend())
    assert [text.get_text().strip("\u200b") for text in legend.get_texts()][:2] == ["_background_", r"a\$b\$"]
    figure.draw_without_rendering()
