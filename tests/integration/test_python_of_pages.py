"""Every block of Python of every page runs, in the page's order, with the names that the page says the reader has."""

import pytest
import torch
from pages import PAGES, ROOT
from torch import nn

import l2t_ray
from l2t_ray.core.loss.network import DynamicLossNetwork

TRIED_IN = {
    "docs/extending.md": "integration/test_extending.py",
    "docs/detection.md": "integration/test_detection_page.py",
    "docs/elsewhere.md": "run/test_elsewhere.py",
}
"""Pages of which more is asked than that they run."""


class Reader(nn.Module):
    """Topics of texts, from the mean of their words."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        return self.last((self.words(tokens) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


def images_of(count):
    """Three classes of small images, each with a corner of its own."""
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 4, 4)
    images[torch.arange(count), 0, labels, labels] += 4
    return images, labels


def texts_of(count):
    topics = torch.arange(count) % 3
    return torch.randint(5, (count, 6)) + 5 * topics[:, None], torch.ones(count, 6), topics


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What a reader has: a model, images and texts with labels, a minibatch loop, the file of a learned loss."""
    fit = l2t_ray.fit
    short = {"num_rounds": 3, "num_steps": 2}
    monkeypatch.setattr(l2t_ray, "fit", lambda *given, **settings: fit(*given, **settings | short))
    DynamicLossNetwork(layers=0, pairs="softmax", memory=1.0).save(tmp_path / "loss.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (images, labels), (clean_images, clean_labels) = images_of(300), images_of(240)
        held_out_images, held_out_labels = images_of(60)
        (tokens, mask, topics), (clean_tokens, clean_mask, clean_topics) = texts_of(300), texts_of(240)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        reader, student = Reader(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    batches = list(zip(images.split(30), labels.split(30), strict=True))
    return {name: value for name, value in locals().items() if name not in ("tmp_path", "monkeypatch", "fit")}


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.python and name not in TRIED_IN])
def test_the_python_of_a_page_runs_in_its_order(name, given, tmp_path):
    with PAGES[name].ran(tmp_path, given) as ran:
        assert {*given} < {*ran.names}


@pytest.mark.parametrize("name", TRIED_IN)
def test_a_page_of_which_more_is_asked_is_read_there(name):
    assert name in (ROOT / "tests" / TRIED_IN[name]).read_text()
