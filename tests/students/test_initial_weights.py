"""First weights from a file: found by name, in the student or in its backbone, or refused in a sentence."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from l2t_ray.interfaces import UserError
from l2t_ray.students.initial_weights import begin_with


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.last = nn.Linear(3, 2)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pth", "nested.pth"])
@pytest.mark.parametrize("has_counters", [True, False])
def test_all_of_a_student_is_taken_from_a_file(tmp_path, kind, has_counters):
    given, student, path = state(Student()), Student(), tmp_path / kind
    if not has_counters:
        del given["backbone.1.num_batches_tracked"]
    if kind == "weights.safetensors":
        save_file(given, str(path))
    else:
        torch.save({"state_dict": given} if kind == "nested.pth" else given, path)
    begin_with(student, path)
    assert same(state(student), given)


def test_a_file_of_the_backbone_leaves_the_rest_as_it_was(tmp_path):
    given, student = state(Student().backbone) | {"fc.weight": torch.zeros(1000, 3)}, Student()
    torch.save(given, tmp_path / "resnet.pth")
    before = state(student.last)
    begin_with(student, tmp_path / "resnet.pth")
    del given["fc.weight"]
    assert same(state(student.backbone), given) and same(state(student.last), before)


class Runs:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("0.bias"), "lacks 1 of the 6 tensors of the student's backbone, such as 0.bias; give"),
        (
            lambda given: given.update({"0.weight": torch.zeros(2, 2)}),
            r"has 0\.weight of shape \[2, 2\], and that of the student's backbone is \[3, 2\]",
        ),
        (lambda given: given["1.bias"].fill_(torch.nan), r"has numbers in 1\.bias that are not finite"),
        (lambda given: given.update({"0.bias": Runs()}), r"cannot be read as a state dict \(.*tensors alone"),
        (lambda given: given.update({"0.bias": 3}), "is no state dict, tensors by name"),
        (lambda given: given.clear(), "is no state dict, tensors by name"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_taken(tmp_path, change, message, capsys):
    given, student, path = state(Student().backbone), Student(), tmp_path / "weights.pth"
    before = state(student)
    change(given)
    torch.save(given, path)
    with pytest.raises(UserError, match=message):
        begin_with(student, path)
    assert same(state(student), before) and "run" not in capsys.readouterr().out


def test_a_file_that_is_not_there_or_no_state_dict_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read student\.initial_weights=.*none\.pth: No such file"):
        begin_with(Student(), tmp_path / "none.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no tensors")
        with pytest.raises(UserError, match=r"cannot be read as a state dict \("):
            begin_with(Student(), tmp_path / name)
