"""`fit` on more than logits and class numbers: targets that only a task understands, and inputs by name."""

import pytest
import torch
from torch import nn

import l2t_ray
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import UserError
from l2t_ray.students.initialise import seeded
from l2t_ray.tasks.segmentation import Segmentation

SIZES = {"num_rounds": 4, "num_steps": 3, "batch_size": 6, "val_batch_size": 4, "learning_rate": 0.2}


def pictures(count):
    """Bright squares on dark ground: class 1 is where it is bright; a border does not count."""
    draw = torch.Generator().manual_seed(count)
    images = torch.rand(count, 1, 8, 8, generator=draw) * 0.2
    masks = torch.zeros(count, 8, 8, dtype=torch.long)
    for row in range(count):
        top, left = torch.randint(0, 5, (2,), generator=draw).tolist()
        images[row, 0, top : top + 3, left : left + 3] += 0.8
        masks[row, top : top + 3, left : left + 3] = 1
    masks[:, 0] = 255
    return images, masks


def pixel_model():
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 1)), 0)


@pytest.mark.parametrize(("loss", "family"), [("terms", TermLoss), ({"layers": 2, "hidden": 6}, PairLoss)])
def test_a_model_of_pixels_learns_under_a_learned_loss(loss, family):
    result = l2t_ray.fit(
        pixel_model(),
        train=pictures(20),
        validation=pictures(12),
        task=Segmentation(["dark", "bright"], error="soft_miou"),
        method={"name": "l2t_dln", "teacher": {"name": "adam", "step_size": 0.02}},
        loss=loss,
        **{**SIZES, "num_rounds": 30, "learning_rate": 0.5},
    )
    assert isinstance(result.loss.family, family) and result.rows[-1]["hypergradient_norm"] > 0
    assert not torch.equal(result.loss.phi, result.loss.family.phi)
    assert result.rows[-1]["test_miou"] > 0.6  # dark everywhere gives 0.42
    assert result.model(pictures(2)[0]).shape == (2, 2, 8, 8)


def test_the_default_method_says_what_to_take_instead():
    with pytest.raises(UserError, match=r"the recommended method is for images with one label each.* method=l2t_dln"):
        l2t_ray.fit(
            pixel_model(),
            train=pictures(20),
            validation=pictures(12),
            task=Segmentation(["dark", "bright"]),
            **SIZES,
        )


class Masked(nn.Module):
    """The mean of the words that are there."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(12, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        there = mask[..., None].to(self.words.weight)
        return self.last((self.words(tokens) * there).sum(dim=1) / there.sum(dim=1))


def sentences(count, *, first="tokens"):
    draw = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    tokens = labels[:, None] * 4 + torch.randint(0, 4, (count, 5), generator=draw)
    mask = torch.arange(5) < torch.randint(1, 6, (count, 1), generator=draw)
    return {first: torch.where(mask, tokens, 0), "mask": mask}, labels


def test_inputs_by_name_are_the_models_arguments():
    result = l2t_ray.fit(
        seeded(Masked, 0), train=sentences(60), validation=sentences(24), **{**SIZES, "num_rounds": 10, "num_steps": 10}
    )
    inputs, labels = sentences(30)
    assert (result.model(**inputs).argmax(dim=1) == labels).float().mean() > 0.9


def test_a_name_that_the_model_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"model is called with the inputs of .* by name \(words, mask\), and its"):
        l2t_ray.fit(
            seeded(Masked, 0), train=sentences(60, first="words"), validation=sentences(24, first="words"), **SIZES
        )
