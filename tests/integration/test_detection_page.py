"""The page on detection keeps its word: torchvision's detector trains as printed, its loss works in a plain loop."""

import pytest
import torch
from pages import PAGES


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The modules of the page's files, by name."""
    with PAGES["docs/detection.md"].ran(tmp_path_factory.mktemp("page")) as ran:
        yield ran.modules


def test_torchvisions_detector_trains_under_a_learned_combination_of_its_terms(page):
    fitted = page["retina"].fitted
    first, last = fitted.rows[0], fitted.rows[-1]
    assert last["test_iou"] > 0.4 and last["val_error"] < first["val_error"]
    assert last["weight_classification_all"] != pytest.approx(1, abs=1e-3)


def test_the_trained_student_is_torchvisions_own_detector(page):
    detector = page["retina"].detector.eval()
    found = detector([torch.zeros(1, 32, 32)])
    assert set(found[0]) == {"boxes", "scores", "labels"}


def test_its_loss_weighs_the_dict_in_a_plain_loop(page):
    loop, loss = page["retina_loop"], page["retina"].fitted.loss
    weights = loss.family.weights(loss.phi)
    expected = sum(weights[name][0] * value for name, value in loop.given.items())
    torch.testing.assert_close(loop.loss(loop.given), expected)
    untrained = page["retina"].retina()(list(loop.images[:25]), page["retina"].as_torchvision(loop.targets[:25]))
    assert loop.given["bbox_regression"] < 0.9 * untrained["bbox_regression"]
