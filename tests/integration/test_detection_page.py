"""The page on detection keeps its word: its detector trains as printed, and its loss works in a plain loop."""

import pytest
import torch
from pages import PAGES


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The modules of the page's files, by name."""
    with PAGES["docs/detection.md"].ran(tmp_path_factory.mktemp("page")) as ran:
        yield ran.modules


def test_a_detector_with_a_dict_of_terms_trains_under_a_learned_combination(page):
    fitted = page["finder"].fitted
    first, last = fitted.rows[0], fitted.rows[-1]
    assert last["test_iou"] > 0.5 and last["val_error"] < first["val_error"]
    assert last["weight_loss_box_reg_all"] != pytest.approx(1, abs=1e-3)


def test_its_loss_weighs_the_dict_in_a_plain_loop(page):
    loop, fitted = page["finder_loop"], page["finder"].fitted
    weights = fitted.loss.family.weights(fitted.loss.phi)
    expected = sum(weights[name][0] * value for name, value in loop.given.items())
    torch.testing.assert_close(loop.loss(loop.given), expected)
    start = loop.losses(page["finder"].Finder()(loop.images), loop.targets[:, :4], loop.targets[:, 4].long())
    assert loop.given["loss_box_reg"] < 0.3 * start["loss_box_reg"]
