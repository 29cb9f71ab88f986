"""The page on taking losses and models elsewhere keeps its word: its examples run as printed, on what a run left."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from l2t_ray.__main__ import COMMANDS
from l2t_ray.core.loss.network import DynamicLossNetwork
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
    first, with_memory, of_the_model = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


def test_every_command_and_extra_that_it_names_is_there():
    assert set(re.findall(r"^l2t (\w+)", PAGE, re.MULTILINE)) | {"convergence"} == set(COMMANDS)
    assert set(re.findall(r"l2t_ray\[(\w+)\]", PAGE)) == {*EXTRAS.values(), "all"}
