"""A trained student outlives its run: one file gives it back, with what it takes to give it images."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import l2t_ray
from l2t_ray.assembly import trained_model
from l2t_ray.assembly.trained_model import ModelCard, write_model
from l2t_ray.data.augment import normalise
from l2t_ray.interfaces import UserError
from l2t_ray.students.known import STUDENTS

KNOWN = {
    "lenet": {},
    "resnet8": {"norm": "group"},
    "wide_resnet": {"depth": 10, "width_factor": 1},
    "pspnet": {"width": 4},
    "yolo": {"width": 0.1, "anchors": tuple((8.0 * i, 9.0 * i) for i in range(1, 7))},
}
CLASSES = ("cat", "dog, small", "Ω")


def card(name="lenet", options=None, **changed):
    given = {"arm": "mine", "task": "classification", "student": {"name": name, **(options or {})}, "image_size": 32}
    statistics = {"class_names": CLASSES, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    return ModelCard(**given | statistics | changed)


def made(described):
    name, *_ = described.student.values()
    options = {key: value for key, value in described.student.items() if key != "name"}
    return STUDENTS[name](**described.shape, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def written(path):
    write_model(path, made(card()), card())
    return path


def refused(message, load):
    with pytest.raises(UserError, match=message) as error:
        load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_gives_back_a_model_in_evaluation_mode(path, name):
    described = card(name, KNOWN[name])
    student = made(described)
    for buffer in student.buffers():  # batch-norm statistics are part of it
        buffer.copy_(torch.rand_like(buffer.float()) + 0.5)
    write_model(path, student, described)
    generator = torch.get_rng_state()
    model = l2t_ray.load_model(path)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training and model.class_names == list(CLASSES) and model.card.arm == "mine"
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(leaves(model(images)), leaves(student.eval()(images)), strict=True):
            assert torch.equal(ours, theirs)


def leaves(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else [leaf for part in outputs for leaf in leaves(part)]


def test_pixels_are_normalised_as_in_training(written):
    model, pixels = l2t_ray.load_model(written), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = normalise(pixels, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert torch.equal(model.preprocess(pixels), expected)
    assert torch.equal(model.preprocess(pixels.numpy()), expected)
    assert torch.equal(model.preprocess(pixels[0]), expected[:1])


def test_files_are_read_and_scaled_as_those_of_a_training_set(path, tmp_path):
    described = card(resized=32)
    write_model(path, made(described), described)
    model, pixels = l2t_ray.load_model(path), np.zeros((64, 80, 3), dtype=np.uint8)
    pixels[:, :40] = 255
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    read = model.preprocess([tmp_path / "a.png", str(tmp_path / "b.png")])
    assert read.shape == (2, 3, 32, 32) and torch.equal(read[:1], model.preprocess(tmp_path / "a.png"))
    white, black = normalise(
        torch.tensor([[[255, 0]]] * 3, dtype=torch.uint8)[None], (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    )[0, :, 0].t()
    torch.testing.assert_close(read[0, :, 5, 3], white)
    torch.testing.assert_close(read[0, :, 5, -3], black)
    assert model(read).shape == (2, 3)


def test_images_of_a_detector_are_laid_into_its_frame(path):
    described = card("yolo", KNOWN["yolo"], frame=(64, 96))
    write_model(path, made(described), described)
    assert l2t_ray.load_model(path).preprocess(torch.zeros(3, 20, 20, dtype=torch.uint8)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.uint8), np.zeros((3, 3), np.uint8)]
)
def test_what_are_no_pixels_of_its_kind_is_refused(written, images):
    refused(
        r"images must be uint8 pixels \[n, 3, height, width\], got",
        lambda: l2t_ray.load_model(written).preprocess(images),
    )


class Own(nn.Module):
    def __init__(self, *, num_classes, in_channels, image_size, width=4):
        super().__init__()
        self.first, self.last = nn.LazyLinear(width), nn.Linear(width, num_classes)
        self.first(torch.zeros(1, in_channels))
        self.tied = self.last  # a file has no place for shared tensors

    def forward(self, images):
        return self.tied(self.first(images.mean(dim=(2, 3))))


def test_a_student_of_ones_own_is_given_for_a_file_runs_no_code(path):
    described = card("my_nets:Own", {"width": 5})
    student = Own(**described.shape, width=5)
    write_model(path, student, described)
    refused(r"is code of your own, my_nets:Own, which a file may not run; give it: load_model\(\.\.\., student=Own\)",
            lambda: l2t_ray.load_model(path))  # fmt: skip
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(l2t_ray.load_model(path, student=Own)(images), student(images))
    refused("do not fit together: 8 of its tensors|do not fit together",
            lambda: l2t_ray.load_model(path, student=lambda **_: nn.Linear(2, 2)))  # fmt: skip


class Words(nn.Module):
    """It needs to know no more than the classes."""

    def __init__(self, num_classes, *, num_words=5):
        super().__init__()
        self.table = nn.Embedding(num_words, num_classes)

    def forward(self, words):
        return self.table(words)


def test_a_model_of_inputs_that_are_no_images_is_called_with_them(path):
    described = card("my_nets:Words", {"num_words": 7}, image_size=None, mean=(), std=())
    assert described.shape == {"num_classes": 3}
    student, words = Words(3, num_words=7), torch.tensor([[6, 0]])
    write_model(path, student, described)
    model = l2t_ray.load_model(path, student=Words)
    assert torch.equal(model(words), student(words)) and torch.equal(model(words=words), student(words))
    refused(r"preprocess\(\) is for images, and this model was trained on none", lambda: model.preprocess(words))


def test_a_student_of_ones_own_is_told_what_it_asks_for(path):
    write_model(path, Words(3), card("my_nets:Words"))
    assert l2t_ray.load_model(path, student=Words).student.table.weight.shape == (5, 3)


def test_a_file_that_is_none_is_refused_in_a_sentence(written, tmp_path):
    def load():
        return l2t_ray.load_model(written)

    good = written.read_bytes()
    written.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("is damaged: its checksum does not fit its content", load)
    written.write_bytes(good[: len(good) // 2])
    refused("cannot be read as a model", load)
    save_file({"x": torch.zeros(1)}, written)
    refused("is not a trained model of the format 'l2t_ray.model/1'; give one of a run", load)
    save_file({"x": torch.zeros(1)}, written, {"format": "l2t_ray.model/9"})
    refused("it is of another version; update l2t_ray", load)
    refused("there is no trained model at", lambda: l2t_ray.load_model(tmp_path / "nothing.safetensors"))
    refused("holds no trained model; give the directory of a run", lambda: l2t_ray.load_model(tmp_path / ".."))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("is the model of a student 'resnet9000', which is not known", {"student": {"name": "resnet9000"}}),
        ("and its student lenet do not fit together", {"class_names": ["a", "b"]}),
        ("and its student wide_resnet do not fit together", {"student": {"name": "wide_resnet", "width_factor": 1000}}),
        ("and its student lenet do not fit together: .*nonsense", {"student": {"name": "lenet", "nonsense": 1}}),
    ],
)
def test_a_header_that_does_not_fit_builds_nothing(path, message, changed):
    write_model(path, made(card()), card(**changed))
    refused(message, lambda: l2t_ray.load_model(path))


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": [0.1]},
        {"std": [0.0, 1.0, 1.0]},
        {"image_size": float("nan")},
        {"class_names": []},
        {"image_size": None},
        {"mean": [], "std": []},
    ],
)
def test_a_header_that_describes_no_model_is_damaged(path, changed, monkeypatch):
    monkeypatch.setattr(trained_model, "asdict", lambda card: asdict(card) | changed)
    write_model(path, made(card()), card())
    refused("is damaged: its header does not describe a model", lambda: l2t_ray.load_model(path))


def test_the_header_says_what_is_needed_without_this_package(written):
    with safe_open(written, "pt") as file:
        described = json.loads(file.metadata()["card"])
    assert described["class_names"] == list(CLASSES) and described["student"] == {"name": "lenet"}
