"""Any loss, optimizer, student and setting of masks or boxes on tiny runs of each task, a user's own losses among them.

`test_configurations.py` draws all keys alike on digits; here the keys are those that the tasks' own code reads, and
most values are ones that may be meant, so that many runs get as far as a round.
"""

import math
import random
import sys
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from harness import in_place
from test_configurations import NUMBERS, REPOSITORY, TEXTS

from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.trial import try_arms
from l2t_ray.interfaces import DivergenceError, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration

FEW = ("ray.enabled=false", "tracking.mlflow=false", "data.download=false", "controls=[]")
ROUNDS = ("training.num_rounds=2", "training.num_steps=2", "training.batch_size=4", "training.val_batch_size=4")
OPTIONS = "data.options={num_train: 12, num_validation: 8, num_test: 6}"
TASKS = {
    "digits": (*FEW, *ROUNDS, "student=lenet", "data.num_validation=100", "training.learning_rate=0.01"),
    "digit_scenes": (*FEW, *ROUNDS, OPTIONS, "data.masks.crop=16", "data.masks.pixels=64", "student.width=8"),
    "digit_boxes": (*FEW, *ROUNDS, OPTIONS, "student.width=0.03125"),
}
"""The settings of a tiny run on each of these sets, on top of the configuration of its name."""

LOSSES = (
    *("terms", "pairs", "{name: terms, pieces: 3}", "{name: terms, pieces: 100}", "{layers: 2, hidden: 3}", "null"),
    *("{layers: 0, label_entries: channel}", "{memory: 2}", "{pieces: 2}", "{name: terms, layers: 2}", "[terms]"),
    *("{name: pairs, pairs: sigmoid, mean: released}", "{name: magic}", "magic", "{}", "true", "3", "{name: null}"),
    *("{name: {name: terms}}", "{name: [terms]}", "own:", ":Good", "own:Good.Deeper", "own:nothing", "own:NUMBER"),
    *("nowhere:Good", "own:Good", "{name: own:Good, strength: 0.5}", "{name: own:Good, strength: many}"),
    *(
        "{name: own:Good, strangth: 0.5}",
        "own:Named",
        "own:FromNothing",
        "own:NoFamily",
        "own:Raises",
        "own:RaisesLate",
    ),
    *(
        "own:Wrong",
        "own:Nothing",
        "own:Exits",
        "own:NoPhi",
        "own:WholePhi",
        "own:FlatPhi",
        "own:EmptyPhi",
        "own:Double",
    ),
    *("own:Nan", "own:OneNumber", "own:TooMany", "own:Detached", "own:NoReport", "own:TextReport", "own:LongReport"),
    *("own:Frozen", "own:Reads", "l2t_ray.methods.loss_terms:TermLossConfig", "os:system", "builtins:int", "own:Draws"),
    *("l2t_ray.methods.loss_settings:LossSettings", "raises:Good", "leaves:Good", "not a path", "own.py:Good", "é:É"),
)
OWN = """
import torch
from l2t_ray.core.loss.family import RowLosses
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.settings.record import Share
NUMBER = 3

class Loss:
    reads_memory = False
    def __init__(self, task, phi):
        self._task, self.phi = task, phi
    def losses(self, phi, terms, memory):
        rows = rows_of(terms, self._task)
        return RowLosses(phi[0].exp() * cross_entropy(rows.logits, rows.labels), rows.weights, rows.owner)
    def fixed(self, terms):
        return cross_entropy(*rows_of(terms, self._task)[:2])
    def report(self, phi):
        return {"strength": phi[0].item()}

class Good(LossSettings):
    strength: Share = 0.1
    def family(self, facts, *, begun=True):
        return self.changed(Loss(facts.task, self.first()))
    def first(self):
        return torch.tensor([self.strength])
    def changed(self, loss):
        return loss

class Named(Good):
    name: str = "named"
class FromNothing: pass
class NoFamily(LossSettings): pass
class Raises(Good):
    def first(self): raise ValueError("two\\nlines")
class RaisesLate(Good):
    def changed(self, loss):
        def losses(phi, terms, memory): raise KeyError("late")
        loss.losses = losses
        return loss
class Exits(Good):
    def first(self): raise SystemExit(0)
class Nothing(Good):
    def changed(self, loss): return None
class Wrong(Good):
    def changed(self, loss): return 3
class NoPhi(Good):
    def first(self): return None
class WholePhi(Good):
    def first(self): return torch.tensor([1, 2])
class FlatPhi(Good):
    def first(self): return torch.tensor(0.5)
class EmptyPhi(Good):
    def first(self): return torch.zeros(0)
class Double(Good):
    def first(self): return torch.zeros(1, dtype=torch.float64)
class Nan(Good):
    def first(self): return torch.tensor([float("nan")])
class Frozen(Good):
    def first(self): return torch.nn.Parameter(torch.zeros(1))
class Changed(Good):
    def changed(self, loss):
        before = loss.losses
        loss.losses = lambda phi, terms, memory: self.other(before(phi, terms, memory))
        return loss
class OneNumber(Changed):
    def other(self, rows): return rows.values.mean()
class TooMany(Changed):
    def other(self, rows): return rows._replace(values=torch.cat([rows.values, rows.values]))
class Detached(Changed):
    def other(self, rows): return rows._replace(values=rows.values.detach())
class Draws(Changed):
    def other(self, rows): return rows._replace(values=rows.values * torch.rand(()))
class NoReport(Good):
    def changed(self, loss):
        loss.report = lambda phi: None
        return loss
class TextReport(Good):
    def changed(self, loss):
        loss.report = lambda phi: {"words": "many"}
        return loss
class LongReport(Good):
    def changed(self, loss):
        loss.report = lambda phi: {"round": 7, "val_error": phi}
        return loss
class Reads(Good):
    def changed(self, loss):
        loss.reads_memory = True
        return loss
"""

STUDENTS = (
    *("yolo", "pspnet", "lenet", "resnet8", "magic", "null", "{name: yolo, depth: tiny, width: 0.03125, halved: true}"),
    *("{name: pspnet, width: 8, norm: batch}", "{name: pspnet, depth: 3}", "{name: yolo, anchors: [[10, 14]]}", "os:x"),
)
ANCHORS = (
    *("[[10, 14], [14, 18], [16, 22], [20, 26], [22, 30], [28, 36]]", "[[10, 14], [14, 18]]", "[]", "[[]]", "[10, 14]"),
    *("[[1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]]", "[[0, 1]]", "[[-3, 5], [1, 2]]", "[[1e9, 1e9], [2, 3]]"),
    *("[[9, 9, 9], [1, 1, 1]]", "[[.nan, 1], [1, 1]]", "{a: 1}", "null", "[[a, b]]"),
)
PAIRS = ("[0.5, 2]", "[1, 1]", "[2, 0.5]", "[0.1, 10]", "[1]", "[1, 1, 1]", "1", "[.nan, 1]", "[0, 1]", "[x, 1]", "[]")
VALUES: dict[str, tuple[str, ...]] = {
    "method.loss": LOSSES,
    "method.loss.name": LOSSES,
    "method.loss.pieces": ("1", "2", "7", "100", "101", "0", "x", "null"),
    "method.loss.tail": ("true", "false", "x"),
    "method.weights": ("{}", "{l_loc: 2}", "{cross_entropy: 0.5}", "{loc: 1}", "{l_loc: 0}", "null", "[1]"),
    "method": ("l2t_dln", "static_dln", "recommended", "cross_entropy", "gce", "mw_net", "slf", "l2r", "glc"),
    "method.teacher": ("lstm", "adam", "magic", "null", "[adam]", "{name: adam, clip: null}", "{cells: [1]}", "{}"),
    "method.engine": ("store", "recompute", "forward_over_reverse", "finite_difference", "one_step", "auto"),
    "method.horizon": ("1", "2", "3", "null"),
    "method.clean_images": ("judge", "mixed", "fine_tuned", "trusted"),
    "method.warm_share": ("0", "0.5", "0.9"),
    "method.reweight": ("null", "{}", "{metric: dot}"),
    "method.schedule": ("lookahead",),
    "controls": (
        "[]",
        "[gce]",
        "[{name: static_dln, loss: terms}]",
        "[{name: static_dln, loss: own:Good}]",
        "recommended",
    ),
    "training.optimizer": ("sgd", "adam", "adamw", "rmsprop", "null", "{name: adam}", "Adam", "true"),
    "training.betas": ("[0.9, 0.99]", "[0, 0]", "[0.9]", "[1, 0.9]", "[0.5, .nan]", "0.9", "[0.9, 0.9, 0.9]", "null"),
    "training.eps": ("1e-8", "1e-30", "0", "1", "null"),
    "training.eps_root": ("0", "1e-8", "-1", "null"),
    "training.clip": ("1", "1e-6", "1e6", "0", "-1", "null", "x"),
    "training.momentum": ("0.9", "0", "1"),
    "training.nesterov": ("true", "false", "1", "maybe"),
    "training.weight_decay": ("0", "1e-3", "1", "100"),
    "training.learning_rate": ("1e-3", "0.1", "10", "0"),
    "training.decay": ("constant", "cosine", "drops"),
    "training.drops": ("[0.5]", "[]", "[0.9, 0.1]"),
    "data.masks": ("{}", "null", "{crop: 8}", "{crop: 16, scale: [1, 1]}", "[]", "3"),
    "data.masks.crop": ("8", "16", "63", "64", "65", "200", "7"),
    "data.masks.scale": PAIRS,
    "data.masks.pixels": ("1", "64", "256", "257", "0", "null"),
    "data.masks.error": ("cross_entropy", "soft_miou", "soft_dice", "miou", "null"),
    "data.boxes": ("{}", "null", "{size: 32}", "{size: [32, 64]}", "[]", "3"),
    "data.boxes.size": ("32", "96", "[32, 96]", "[96]", "33", "0", "[32, 32, 32]", "160", "null"),
    "data.boxes.scale": PAIRS,
    "data.boxes.loss": ("darknet", "squares", "paper", "null"),
    "data.boxes.by_class": ("true", "false", "x"),
    "data.imbalance": ("{kind: rare, of: '1', factor: 2}", "{kind: rare, factor: 2}", "{kind: rare, of: x, factor: 9}"),
    "data.boxes.error": ("edet", "edet50", "total", "map"),
    "data.noise": (
        "{kind: mixed, rate: 0.5}",
        "{kind: shifted, rate: 0.9, strength: 0.99}",
        "{kind: dropped, rate: 0.99}",
    ),
    "data.noise.kind": ("flip_to_two", "mislabelled", "labels", "scaled"),
    "data.augment": ("none", "flip", "crop_flip"),
    "data.augment_validation": ("true", "false"),
    "data.crop_padding": ("zero", "reflect"),
    "data.split": ("fixed", "redivide"),
    "data.image_size": ("8", "32", "96", "200", "null", "1"),
    "data.num_train": ("1", "3", "4", "12", "99"),
    "data.num_validation": ("1", "3", "8", "99"),
    "data.at_pass_end": ("wrap", "lose_step"),
    "data.options": (
        "{}",
        "{num_train: 0}",
        "{num_train: 5, num_validation: 0}",
        "{num_train: x}",
        "{seed: 1}",
        "[1]",
        "null",
    ),
    "data.name": (
        "digits",
        "digit_scenes",
        "digit_boxes",
        "mask_folder",
        "coco",
        "own:nothing",
        "own:NUMBER",
        "os:getcwd",
    ),
    "student": STUDENTS,
    "student.width": ("1", "0.03125", "0.25", "0", "1.5", "-2"),
    "student.depth": ("tiny", "53", "50", "18", "1", "0"),
    "student.halved": ("true", "false"),
    "student.anchors": ANCHORS,
    "student.auxiliary": ("true", "false", "0", "0.4", "x"),
    "student.norm": ("batch", "group", "none"),
    "student.blocks": ("[1, 1, 1, 1]", "[1]", "[]", "[0, 1, 1, 1]", "1"),
    "student.stride": ("8", "16", "7", "0"),
    "student.sync_batchnorm": ("true", "false"),
}


def overrides(generator: random.Random) -> tuple[str, list[str]]:
    """A set, and settings of a tiny run on it, one to three of them out of the ordinary."""
    name = generator.choice(list(TASKS))
    keys = [key for key in VALUES if _is_read(key, name) or generator.random() < 0.1]
    chosen = []
    for key in generator.sample(keys, generator.choice((1, 1, 2, 3))):
        odd = generator.random() < 0.1
        chosen.append(f"{key}={generator.choice(NUMBERS + TEXTS if odd else VALUES[key])}")
    return name, [*TASKS[name], *sorted(chosen)]


def _is_read(key: str, name: str) -> bool:
    own = {"digit_scenes": "masks", "digit_boxes": "boxes"}.get(name)
    return not key.startswith(("data.masks", "data.boxes")) or key.startswith(f"data.{own}")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A directory where a user's own modules are found."""
    files = {"own": OWN, "raises": "1 / 0", "leaves": "raise SystemExit('two\\nlines')"}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    for name in files:
        sys.modules.pop(name, None)


def rows_of(name: str, settings: list[str]) -> list[dict[str, Any]]:
    """The rounds of a run, whose arms are tried first."""
    config = configuration.load(REPOSITORY / f"configs/{name}.yaml", settings)
    alone = {"group": SingleProcess(), "device": torch.device("cpu")}
    if config.training.try_first:
        try_arms(build_run(config, **alone), config)
    end = build_run(config, **alone).train(start=None, store=None, on_row=lambda row: None)
    if end.diverged:
        raise DivergenceError(*end.diverged.values())
    return end.rows


def are_finite(rows: list[dict[str, Any]]) -> bool:
    return bool(rows) and all(math.isfinite(x) for row in rows for x in row.values() if isinstance(x, float))


def try_tasks(tally, number: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(number):
        name, settings = overrides(generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, seen = in_place(
                partial(rows_of, name, settings),
                are_finite,
                refusals=(UserError,),
                diverges=(DivergenceError,),
                timeout=120,
            )
        tally.add([name, *settings[len(TASKS[name]) :]], verdict, seen)


@pytest.mark.parametrize("name", TASKS)
def test_a_tiny_run_of_each_task_ends_well(modules, name):
    """Otherwise nothing below would be right."""
    assert are_finite(rows_of(name, list(TASKS[name])))


def test_any_setting_of_any_task(tally, modules):
    counted = tally("losses, optimizers, students, masks and boxes")
    try_tasks(counted, number=12, seed=0)
    counted.check(at_least=12)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_any_setting_of_any_task_at_length(tally, modules):
    counted = tally("losses, optimizers, students, masks and boxes")
    try_tasks(counted, number=1_500, seed=1)
    counted.check(at_least=1_500)
