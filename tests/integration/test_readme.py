"""The README keeps its word: its example runs as printed, and everything it names is there."""

import re

import pytest
import torch
from pages import PAGES, ROOT
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import UserError

README = PAGES["README.md"]


def test_the_plain_loop_example_trains(tmp_path, monkeypatch):
    """A student learns two blobs under a saved loss, with the README's own lines."""
    monkeypatch.chdir(tmp_path)
    DynamicLossNetwork(init="cross_entropy", pairs="softmax", activation="silu").save("loss.safetensors")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 2, generator=generator) + 4 * labels[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Linear(2, 2)
    (example,) = (block.text for block in README.python if "LearnedLoss.load" in block.text)
    assert len(example.strip().splitlines()) <= 10
    exec(example, {"student": student, "batches": [(images, labels)] * 50})
    assert (student(images).argmax(dim=1) == labels).float().mean() > 0.95


def test_files_and_configurations_that_it_names_exist():
    names = set(re.findall(r"(?:configs|jobs|docs|tests|l2t_ray)/[\w/.]*\w\.(?:yaml|py|md|png)", README.text))
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


CHANNEL_AND_MEMORY = {"layers": 0, "pairs": "softmax", "channel": 3, "memory": 1.0}


@pytest.mark.parametrize(
    ("teacher", "warm_share", "loss", "within"),
    [
        ("adam", 0.0, None, None),
        ("adam", 0.15, None, 0.15),
        ("lstm", 0.15, None, 0.15),
        ("adam", 0.15, CHANNEL_AND_MEMORY, 0.2),
    ],
)
def test_fit_learns_from_noisy_labels_with_a_clean_few(teacher, warm_share, loss, within):
    """Three blobs, 30 % of the training labels turned to the next class: the model beats the labels it was given, and
    with warm rounds the loss says how they were turned."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    corners = 3 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    inputs = torch.randn(300, 2, generator=generator) + corners[labels]
    noisy = torch.where(torch.rand(240, generator=generator) < 0.3, (labels[:240] + 1) % 3, labels[:240])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted = fit(
        model,
        train=(inputs[:240], noisy),
        validation=(inputs[240:], labels[240:]),
        num_rounds=30,
        num_steps=5,
        val_batch_size=30,
        teacher=teacher,
        warm_share=warm_share,
        loss=loss and DynamicLossNetwork(**loss),
    )
    accuracy = (fitted.model(inputs[:240]).argmax(dim=1) == labels[:240]).float().mean()
    assert accuracy > 0.85 > (noisy == labels[:240]).float().mean()
    assert len(fitted.rows) == 30 and fitted.loss.phi.requires_grad is False
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert (fitted.noise is not None) == (warm_share > 0)
    if loss:
        assert fitted.rows[-1]["memory_weight"] != pytest.approx(1.0, abs=1e-3)
    if warm_share:
        parts = fitted.loss.family.spec.parts
        channel = parts.channel.log_matrix(parts.split(fitted.loss.phi).channel).exp()
        drawn = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
        assert (channel - drawn).abs().max() < within  # the identity, where it starts, is 0.3 away


def test_fit_refuses_a_loss_for_other_classes():
    inputs, labels = torch.zeros(60, 2), torch.arange(60) % 3
    with pytest.raises(UserError, match="loss is for 4 classes, and the labels have 3"):
        fit(
            nn.Linear(2, 3),
            train=(inputs, labels),
            validation=(inputs, labels),
            val_batch_size=30,
            loss=DynamicLossNetwork(layers=0, pairs="softmax", channel=4),
        )
