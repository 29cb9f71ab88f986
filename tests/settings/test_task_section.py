"""A task of the user's own, by its import path: its settings are checked, and what is wrong is one sentence."""

import pickle
import sys

import pytest

from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.tasks import build_task
from l2t_ray.interfaces import UserError
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.signature import record_of

MODULE = """
import numpy as np
import torch
from l2t_ray.data.example_sets import ExampleDataset, ExampleSet
from l2t_ray.tasks.classification import Classification

class Own(Classification):
    name = "own"
    def __init__(self, class_names, smoothing: float = 0.1, kind: str = "mean"):
        self.class_names, self.smoothing = class_names, smoothing

class PerPart(Classification):
    row_is_example = False

class Halves(PerPart):
    def num_rows(self, targets):
        return 2 + 0 * targets

def failing(): raise RuntimeError("no such thing")
def nothing(): ...
def taken(options: int = 3): ...
def untold(): return PerPart()
number = 3

def part(labels):
    return ExampleSet.of(np.arange(3 * len(labels), dtype=np.float32).reshape(-1, 3), labels, ("a", "b"))

class Drawing:
    extreme_rows = []
    def __init__(self, examples):
        self.examples = examples
    def __len__(self):
        return len(self.examples)
    def draws(self, generator, size):
        return (np.full(size, 1000.0, dtype=np.float32),)
    def batch(self, rows, draws, device):
        inputs, targets = self.examples.batch(rows, (), device)
        return (inputs + torch.from_numpy(draws[0])[:, None] if draws else inputs), targets

def numbers(kind: str = "labels"):
    labels = np.arange(20) % 2
    if kind == "targets":
        labels = labels.astype(np.float32)
    if kind == "drawn":
        made = part(labels)
        return ExampleDataset("numbers", ExampleSet(Drawing(made.examples), ("a", "b"), "x", labels), made)
    if kind == "empty name":
        return ExampleDataset("numbers", part(labels), ExampleSet(part(labels).examples, ("a", "b"), ""))
    if kind == "strange":
        strange = part(labels)
        object.__setattr__(strange, "examples", [1, 2])  # types are checked in tests alone
        return ExampleDataset("numbers", part(labels), strange)
    if kind == "wrong labels":
        made = part(labels)
        return ExampleDataset("numbers", made, ExampleSet(made.examples, ("a", "b"), "x", labels=labels + 1))
    if kind == "names":
        other = part(labels)
        return ExampleDataset("numbers", other, ExampleSet(other.examples, ("a",), "x"))
    return ExampleDataset("numbers", part(labels), part(labels))
"""


@pytest.fixture(autouse=True)
def load(tmp_path, monkeypatch):
    """Reads overrides in a directory that has `ours.py`."""
    (tmp_path / "ours.py").write_text(MODULE)
    text = "{controls: [], ray: {enabled: false}, training: {batch_size: 4, val_batch_size: 4}, method: gce}"
    (tmp_path / "x.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda *overrides: configuration.load(tmp_path / "x.yaml", overrides)
    sys.modules.pop("ours", None)
    record_of.cache_clear()


def test_a_task_has_its_own_settings_and_is_told_of_the_data(load, tmp_path):
    config = load("task=ours:Own", "task.smoothing=0.25")
    assert config.task.options() == {"smoothing": 0.25, "kind": "mean"}
    task = build_task(config)
    assert task.smoothing == 0.25 and task.class_names == tuple("0123456789")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert configuration.load(tmp_path / "again.yaml") == config and config.flat()["task.smoothing"] == 0.25
    record_of.cache_clear()  # as in another process
    assert pickle.loads(pickle.dumps(config)).to_yaml() == config.to_yaml()


def test_without_a_task_the_data_says_what_is_learned(load):
    assert load().task is None and build_task(load()).name == "classification"
    assert load("task={name: 'ours:Own', kind: x}", "task=null").task is None


def test_another_task_takes_none_of_the_first_ones_settings(load):
    assert load("task={name: 'ours:Own', kind: x}", "task=ours:untold").task.options() == {}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task=ours:Own", "task.smothing=1"], r"unknown key task\.smothing .*did you mean task\.smoothing\?"),
        (["task=ours:Own", "task.smoothing=x"], r"task\.smoothing on the command line: must be a number, got 'x'"),
        (["task=classification"], r"task on the command line: must be the import path of a task .*, got .*'classifica"),
        (["task.smoothing=3"], r"task on the command line: must name what makes it, as in task\.name=my\.module:make"),
        (["task=3"], r"task on the command line: must be the import path of a task of your own, such as .*, got 3"),
        (["task=ours:absent"], r"'ours:absent': ours has no absent; name something that it defines"),
        (["task=ours:number"], r"task 'ours:number' must be a function that makes a task, and is of type int"),
        (["task=ours:taken"], r"its argument options has a name that is taken; call it something else"),
    ],
)
def test_a_mistake_with_a_task_of_ones_own_gets_one_sentence(load, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        load(*overrides)
    assert "\n" not in str(refused.value)


OWN_DATA = ["data.name=ours:numbers", "data.num_validation=8"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task=ours:failing"], r"task 'ours:failing' cannot be made \(RuntimeError: no such thing\); mend it"),
        (
            ["task=ours:nothing"],
            r"task 'ours:nothing' gives a NoneType without error, kinds, metrics, name, num_rows, ",
        ),
        (
            ["data.name=digit_scenes", "task=ours:Own"],
            r"task own says that each example is one row, and data\.name=dig",
        ),
        (OWN_DATA, r"data\.name=ours:numbers has examples of its own kind; name the task that knows them"),
        (
            [*OWN_DATA, "data.options.kind=targets", "task=ours:Own"],
            r"gives no label of each; give the examples labels",
        ),
        (
            [*OWN_DATA, "data.augment=flip", "task=ours:Own"],
            r"data\.augment is 'flip', which data\.name=ours:numbers do",
        ),
        (
            [*OWN_DATA, "data.noise={kind: uniform, rate: 0.1}", "task=ours:Own"],
            r"data\.noise\.kind is 'uniform', which",
        ),
        (
            [*OWN_DATA, "data.masks.crop=32", "task=ours:Own"],
            r"data\.masks is of images with masks, and ours:numbers has",
        ),
        (
            [*OWN_DATA, "data.options.kind=strange", "task=ours:Own"],
            r"must hold examples with .*, got a list; ExampleS",
        ),
        ([*OWN_DATA, "data.options.kind=empty name", "task=ours:Own"], r"content of the test part of .* must be text"),
        (
            [*OWN_DATA, "data.options.kind=wrong labels", "task=ours:Own"],
            r"test part of .* has the label 2, where 2 clas",
        ),
        ([*OWN_DATA, "data.options.kind=names", "task=ours:Own"], r"train and test of .* name other classes"),
    ],
)
def test_a_task_or_data_that_do_not_fit_are_refused_before_anything_is_trained(load, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        source_of(load(*overrides))
    assert "\n" not in str(refused.value)


def test_examples_with_labels_are_divided_by_class_and_keep_their_targets(load):
    source = source_of(load(*OWN_DATA, "task=ours:Own"))
    train, val = source.plain().round(0)
    assert [len(batch.targets) for batch in (*train[:1], val)] == [4, 4]
    assert all(batch.targets.equal(batch.indices % 2) and batch.weights.sum() == 1 for batch in (*train, val))
    labels = source.labels()
    assert labels.observed[labels.is_validation].tolist().count(0) == 4 and labels.noise is None


def test_examples_draw_for_themselves_unless_they_are_to_be_left_as_they_are(load):
    drawn, left = (source_of(load(*OWN_DATA, "data.options.kind=drawn", "task=ours:Own", f"data.augment={augment}"))
                   for augment in ("crop_flip", "none"))  # fmt: skip
    (first, *_), val = drawn.plain().round(0)
    assert (first.inputs[:, 0] >= 1000).all() and (val.inputs[:, 0] < 1000).all()
    assert (left.plain().round(0).train[0].inputs[:, 0] < 1000).all()


def test_rows_of_ones_own_task_are_weighed_on_images_too(load):
    """The shares of a task's rows add up to one: an image of this task has two."""
    config = load("task=ours:Halves")
    train, val = source_of(config).plain().round(0)
    assert all(batch.weights.tolist() == [1 / 8] * 4 for batch in (*train, val))
