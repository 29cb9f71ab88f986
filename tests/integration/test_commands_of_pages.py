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

from l2t_ray.__main__ import main as l2t
from l2t_ray.run import Experiment, ready_experiment
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


class TakenError(Exception):
    """The command has been read, and what it names is there."""


def taken(*_, **__):
    raise TakenError


@pytest.fixture
def dry(monkeypatch, tmp_path):
    """In a directory where commands are read, and do nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
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


READ_ALONE = {"report", "convergence", "show", "suspects"}
"""What takes neither a configuration nor keys."""


def ends_where_it_is_read(patch):
    """Makes a program end once its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def read(self, *given, **named):
        arguments = parse(self, *given, **named)
        return taken() if self.prog != "l2t" else arguments

    patch.setattr(argparse.ArgumentParser, "parse_args", read)


def check(words, patch):
    """Raises `TakenError` if the command is one."""
    program, *rest = words
    if program == "python" and rest[:2] == ["-m", "l2t_ray"]:
        program, rest = "l2t", rest[2:]
    if program == "l2t":
        if rest[0] in READ_ALONE:
            ends_where_it_is_read(patch)
        try:
            l2t(rest)
        except SystemExit as exit:
            if exit.code == 0:
                raise TakenError from None
            raise
    elif program == "python":
        if Path(rest[0]).parent.name == "benchmarks" or Path(rest[0]).stem in READ_ALONE:
            ends_where_it_is_read(patch)
        patch.setattr(sys, "argv", rest)
        patch.syspath_prepend(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")
    elif program == "make":
        (target,) = [word for word in rest if "=" not in word]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        taken()
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {name for word in rest for named in re.findall(r"\[(.*)\]", word) for name in named.split(",")} <= {
            *extras
        }
        taken()
    elif "--" in rest:  # ray job submit
        check(rest[rest.index("--") + 1 :], patch)
    else:
        assert program in NOT_OURS
        taken()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_is_taken_as_it_stands_there(command, dry, monkeypatch):
    page, words = COMMANDS[command]
    page.write_files(dry)
    try:
        with pytest.raises(TakenError):
            check(words, monkeypatch)
    finally:
        for module in page.modules:
            sys.modules.pop(module, None)
