"""A student's settings are the keyword arguments of the function that makes it, whoever wrote that."""

import pickle
import sys

import pytest
import torch

from l2t_ray.assembly.images import load_dataset
from l2t_ray.assembly.students import build_student
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.signature import record_of

MODULE = '''
from typing import Literal
import torch

def make(*, num_classes, in_channels, image_size, width: int = 8, rate: float = 0.5, kind: Literal["a", "b"] = "a",
         sizes: tuple[int, ...] = (1, 2), scale: float | None = None):
    """A linear student."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels * image_size**2, width),
                               torch.nn.Linear(width, num_classes))

def strict(*, num_classes, in_channels, image_size, width: int):
    return make(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)

class Module(torch.nn.Linear):
    def __init__(self, num_classes: int, in_channels: int, image_size: int, bias: bool = True):
        super().__init__(image_size, num_classes, bias)

def shapeless(num_classes, width=3): ...
def untyped(*, num_classes, in_channels, image_size, width=None): ...
def taken(*, num_classes, in_channels, image_size, name="x"): ...
def nothing(*, num_classes, in_channels, image_size): ...
def failing(*, num_classes, in_channels, image_size): raise RuntimeError("no such weights")
number = 3
'''


@pytest.fixture(autouse=True)
def load(tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(MODULE)
    (tmp_path / "x.yaml").write_text("controls: []\nray: {enabled: false}\nstudent: {name: resnet8, norm: group}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda *overrides: configuration.load(tmp_path / "x.yaml", overrides)
    sys.modules.pop("ours", None)
    record_of.cache_clear()


def built(config):
    return build_student(config.student, load_dataset(config.data), group=SingleProcess(), seed=0)


def test_a_known_student_has_its_own_settings_and_no_others(load):
    assert load().student.options() == {"widths": "narrow", "norm": "group", "shortcut": "conv"}
    assert load("student=lenet").student.options() == {}
    with pytest.raises(
        UserError, match=r"unknown key student\.depth on the command line; did you mean student\.widths"
    ):
        load("student.depth=16")


def test_another_student_keeps_the_settings_that_it_has_too(load):
    assert load("student.name=resnet20").student.norm == "group"
    assert load("student.name=wide_resnet", "student.depth=16").student.options() == {
        "depth": 16,
        "width_factor": 10,
        "norm": "group",
    }


def test_a_setting_that_another_student_has_is_refused(load):
    with pytest.raises(UserError, match=r"unknown key student\.norm on the command line"):
        load("student.name=lenet", "student.norm=batch")


def test_a_function_of_ones_own_makes_the_student_with_its_settings(load, tmp_path):
    config = load("student.name=ours:make", "student.width=5", "student.sizes=[3]")
    assert config.student.options() == {"width": 5, "rate": 0.5, "kind": "a", "sizes": (3,), "scale": None}
    assert built(config)[1].out_features == 5
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert configuration.load(tmp_path / "again.yaml") == config and config.flat()["student.width"] == 5
    assert isinstance(built(load("student=ours:Module", "student.bias=false")), torch.nn.Linear)


def test_a_configuration_reaches_another_process_as_it_is(load):
    """Workers are sent it; the class of a student's settings is made in each process."""
    for name in ("resnet8", "ours:make"):
        config = load(f"student={name}", "method=gce")
        record_of.cache_clear()
        again = pickle.loads(pickle.dumps(config))
        assert again.to_yaml() == config.to_yaml() and again.student.options() == config.student.options()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["student=ours:make", "student.widht=1"], r"unknown key student\.widht .*did you mean student\.width\?"),
        (
            ["student=ours:make", "student.width=-1"],
            r"student\.width on the command line: .*greater than or equal to 0",
        ),
        (
            ["student=ours:make", "student.width=true"],
            r"student\.width on the command line: must be a number, got True",
        ),
        (["student=ours:make", "student.rate=x"], r"student\.rate on the command line: must be a number, got 'x'"),
        (["student=ours:make", "student.kind=c"], r"student\.kind on the command line: input should be 'a' or 'b'"),
        (["student=ours:make", "student.sizes=[yes]"], r"student\.sizes.* must be a number, got True"),
        (["student=ours:strict"], r"lacks student\.width, which must be given"),
        (["student=ours:shapeless"], r"'ours:shapeless' cannot be made .*lacks in_channels, image_size"),
        (["student=ours:untyped"], r"its argument width needs a type, such as width: int"),
        (["student=ours:taken"], r"its argument name has a name that is taken"),
        (["student=ours:number"], r"'ours:number' must be a function that makes a module, and is of type int"),
        (["student=ours:absent"], r"'ours:absent': ours has no absent"),
        (["student=resnet9"], r"student\.name on the command line must be one of 'resnet8', .*, got 'resnet9'"),
    ],
)
def test_a_mistake_gets_one_sentence(load, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        load(*overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ("ours:nothing", "must give a torch.nn.Module, and gives a NoneType"),
        ("ours:failing", r"cannot be made \(RuntimeError: no such weights\); mend it or its settings"),
        ("{name: wide_resnet, depth: 1000000}", r"student\.depth must be 6n \+ 4 .*, at most 1024, got 1000000"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(load, student, sentence):
    with pytest.raises(UserError, match=sentence):
        built(load(f"student={student}"))


def test_a_list_or_a_word_says_both():
    with pytest.raises(UserError, match=r"^student\.anchors in the test: must be a list or 'kmeans', got 'kmean'\.$"):
        configuration.validate({"student": {"name": "yolo", "anchors": "kmean"}}, source="the test")
