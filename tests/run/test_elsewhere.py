"""The page on taking losses and models elsewhere keeps its word: its examples run as printed, on what a run left."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from l2t_ray.__main__ import COMMANDS
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.data.scans import digit_scans
from l2t_ray.extras import EXTRAS

PAGE = (Path(__file__).parents[2] / "docs/elsewhere.md").read_text()


@pytest.fixture
def in_a_run(whole, tmp_path, monkeypatch):
    """In a directory that has a run's loss."""
    shutil.copy(whole / "loss.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    return whole


def test_the_examples_run_one_after_the_other(in_a_run, capsys):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 3, generator=generator), torch.arange(20) % 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Linear(3, 10)
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    names = {"student": student, "batches": [(images, labels)] * 3, "run": in_a_run, "pixels": pixels}
    unmarked = re.sub(r"<!-- example: .*? -->\n```python\n.*?```", "", PAGE, flags=re.DOTALL)
    first, with_memory, of_the_model = re.findall(r"```python\n(.*?)```", unmarked, re.DOTALL)
    before = student.weight.detach().clone()
    exec(first, names)
    assert not torch.equal(student.weight, before) and student.weight.isfinite().all()
    network = DynamicLossNetwork(layers=0, pairs="softmax", memory=1.0)
    network.save("loss.safetensors")
    names["loss"] = names["l2t_ray"].LearnedLoss.load("loss.safetensors")
    exec(with_memory, names)
    assert names["loss"].memory.shape == (20, 10) and names["loss"].memory.any()
    exec(of_the_model, names)
    assert capsys.readouterr().out.strip() in map(str, range(10))
    assert names["p"].shape == (2, 10) and names["control"].card.arm == "cross_entropy"


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """What the examples with a mark are given: scanned digits, a few of them clean."""
    monkeypatch.chdir(tmp_path)
    scans, labels = digit_scans()
    images, labels = torch.tensor(scans).flatten(1), torch.tensor(labels)
    noisy = torch.where(torch.arange(480) % 5 < 2, (labels[:480] + 1) % 10, labels[:480])
    pixels = images.float() / 255
    tokens = (images.long() * 16 + 127) // 255
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = nn.Linear(64, 10)
        yield {
            "student": student,
            "batches": list(zip(pixels[:480].split(8), noisy.split(8), strict=True)) * 3,
            "clean_images": pixels[480:680],
            "clean_labels": labels[480:680],
            "train_loader": DataLoader(TensorDataset(pixels[:480], noisy), batch_size=16),
            "noisy_sequences": [{"input_ids": x, "labels": int(y)} for x, y in zip(tokens[:480], noisy, strict=True)],
            "clean_sequences": [
                {"input_ids": x, "labels": int(y)} for x, y in zip(tokens[480:680], labels[480:680], strict=True)
            ],
        }


def marked(name):
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1]


def test_a_loop_of_ones_own_learns_the_loss(digits):
    exec(marked("own loop"), digits)
    loss = LearnedLoss.load("loss.safetensors")
    wrong = 1 - loss.family.spec.parts.channel.log_matrix(loss.phi).exp().diagonal()
    assert 0.25 < wrong.mean() < 0.55  # 40 % of the labels are


@pytest.mark.filterwarnings("ignore")  # those of Lightning
def test_lightning_learns_the_loss(digits):
    pytest.importorskip("lightning")
    exec(marked("lightning"), digits)
    assert LearnedLoss.load("loss.safetensors").phi.any()


@pytest.mark.filterwarnings("ignore")  # those of transformers
def test_hugging_faces_trainer_learns_the_loss_and_takes_it_frozen(digits):
    pytest.importorskip("transformers")
    exec(marked("hugging face"), digits)
    assert LearnedLoss.load("loss.safetensors").phi.any()
    digits["trainer"].args.max_steps = 2
    exec(marked("frozen loss"), digits)
    assert digits["trainer"].state.global_step == 2


def test_every_command_and_extra_that_it_names_is_there():
    assert set(re.findall(r"^l2t (\w+)", PAGE, re.MULTILINE)) | {"convergence"} == set(COMMANDS)
    assert set(re.findall(r"l2t_ray\[(\w+)\]", PAGE)) == {*EXTRAS.values(), "all"}
