"""The page on detection keeps its word: its detector trains as printed, and its loss works in a plain loop."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs/detection.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\w+)\.py -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The modules of the page's files, run once from a directory that has all of them."""
    directory = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (directory / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.syspath_prepend(directory)
        patch.chdir(directory)
        yield {name: import_module(name) for name in ("finder", "finder_loop")}
    for name in FILES:
        sys.modules.pop(name, None)


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
