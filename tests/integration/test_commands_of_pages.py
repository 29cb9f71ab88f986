"""Every command that a page gives is one that its program takes: options, keys and values.

What it would do is left out: a configuration is read and checked, and nothing is opened or trained.
"""

import argparse
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, ROOT

from l2t_ray.__main__ import COMMANDS as L2T
from l2t_ray.__main__ import main as l2t
from l2t_ray.run import Experiment, ready_experiment
from l2t_ray.settings.experiment import load
from l2t_ray.shipped import config_file
from l2t_ray.studies import command as study_command
from l2t_ray.studies import sweep
from l2t_ray.studies.comparison import Comparison

OF_THE_PAST = "docs/log.md"
NOT_OURS = {"source", "cd", "export", "ray", "kubectl", "docker", "mlflow"}
STAND_INS = {"FILE": "studies/example", "my.yaml": "digits_noise40", "my_labels.csv": "digits"}
"""What the pages call files of the reader's, and a configuration each that is there."""
COMMANDS = {
    " ".join(command): (page, command)
    for page in PAGES.values()
    if page.name != OF_THE_PAST
    for command in page.commands
}
SETTINGS = [(page.name, block.text) for page in PAGES.values() for block in page.blocks if block.language == "yaml"]
READ_ALONE = {"report", "convergence", "show", "suspects"}
"""What takes neither a configuration nor keys."""
STUDIES = {"ablation", "gradients", "lr_robustness", "similarity", "study"}


class TakenError(Exception):
    """The command has been read, and what it names is there."""


def taken(*_, **__):
    raise TakenError


@pytest.fixture
def dry(monkeypatch, tmp_path):
    """A directory in which commands are read, and do nothing."""
    for name, shipped in STAND_INS.items():
        text = config_file(shipped).read_text()
        (tmp_path / name).write_text(text.replace("base: ../", f"base: {ROOT}/configs/"))
    for folder in ("configs", "jobs", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(Experiment, "run", taken)
    monkeypatch.setattr(Experiment, "resume", taken)
    monkeypatch.setattr(Experiment, "check_hypergradient", lambda self: ({"float64": 0, "finite differences": 0}, True))
    monkeypatch.setattr(ready_experiment, "with_anchors", lambda config: config)
    monkeypatch.setattr(Comparison, "run", taken)
    monkeypatch.setattr(sweep, "check_trials", len)  # that each is a possible experiment has been found by then
    monkeypatch.setattr(study_command, "run", taken)
    monkeypatch.setattr(sweep.Sweep, "resume", taken)
    return tmp_path


def check(words, patch):
    """Raises `TakenError` if the command is one."""
    program, *rest = words
    if program == "python" and rest[:2] == ["-m", "l2t_ray"]:
        program, rest = "l2t", rest[2:]
    if program in CHECKS:
        CHECKS[program](rest, patch)
    elif "--" in rest:  # ray job submit
        check(rest[rest.index("--") + 1 :], patch)
    else:
        assert program in NOT_OURS
    taken()


def check_l2t(rest, patch):
    if len(rest) == 1 and not rest[0].startswith("-"):  # its name, in a sentence
        assert rest[0] in L2T
        return
    if rest[0] in READ_ALONE:
        ends_where_it_is_read(patch)
    try:
        l2t(rest)
    except SystemExit as exit:  # `--help`
        assert exit.code == 0


def check_python(rest, patch):
    script, *arguments = rest
    name = Path(script).stem
    if any("..." in word for word in arguments):  # in a sentence, where the rest is the reader's
        assert Path(script).exists()
        return
    if Path(script).parent.name == "benchmarks" or name in READ_ALONE:
        ends_where_it_is_read(patch)
    elif name in STUDIES and not {"--resume", "--seeds"} & {*arguments}:
        arguments += ["--seeds", "1"]  # each seed is read for itself
    patch.setattr(sys, "argv", [script, *arguments])
    patch.syspath_prepend(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def check_make(rest, patch):
    (target,) = (word for word in rest if "=" not in word)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_pip(rest, patch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [name for word in rest for names in re.findall(r"\[(.*)\]", word) for name in names.split(",")]
    assert {*named} <= {*extras}


CHECKS = {"l2t": check_l2t, "python": check_python, "make": check_make, "pip": check_pip}


def ends_where_it_is_read(patch):
    """Makes a program end once its arguments are parsed; `l2t` itself goes on to its command."""
    parse = argparse.ArgumentParser.parse_args

    def read(self, *given, **named):
        arguments = parse(self, *given, **named)
        return arguments if self.prog == "l2t" else taken()

    patch.setattr(argparse.ArgumentParser, "parse_args", read)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_is_taken_as_it_stands_there(command, dry, monkeypatch):
    page, words = COMMANDS[command]
    with page.placed(dry), pytest.raises(TakenError):
        check(words, monkeypatch)


@pytest.mark.parametrize(("name", "text"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_settings_that_a_page_shows_are_settings(name, text, dry):
    with PAGES[name].placed(dry):
        (dry / "shown.yaml").write_text(text)
        load(dry / "shown.yaml")
