"""`l2t`: the commands by name, what each says of itself, and what it shows of a run."""

import json
import subprocess
import sys

import pytest

import l2t_ray
from l2t_ray.__main__ import COMMANDS, main

SUMMARY = [
    {"arm": "elr", "test_accuracy": 0.75, "best_test_accuracy": 0.8, "val_error": 0.5, "seconds": 62.0},
    {"arm": "l2t_dln", "test_accuracy": 0.875, "best_test_accuracy": 0.9, "val_error": 0.25, "seconds": 90.0},
]


def said(capsys, *arguments, code=None):
    """What is printed, after checking the exit code (None: it returns)."""
    if code is None:
        main(arguments)
    else:
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert (exit.value.code or 0) == code
    output = capsys.readouterr()
    return output.out + output.err


def test_help_names_every_command_and_configuration_and_imports_nothing_heavy():
    program = "import sys, runpy; sys.argv = ['l2t', '--help']\ntry: runpy.run_module('l2t_ray', run_name='__main__')\n"
    program += "except SystemExit: print(sorted({'torch', 'numpy', 'ray', 'pydantic', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS) and "digits_noise40" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_the_version_is_the_packages(capsys):
    assert said(capsys, "--version", code=0) == f"l2t_ray {l2t_ray.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_takes_under_its_own_name(capsys, name):
    text = said(capsys, name, "--help", code=0)
    assert text.startswith(f"usage: l2t {name} [-h]") and COMMANDS[name].what[1:] in text
    assert f"l2t {name} --help shows what can be given." in said(capsys, name, "--strange", "--config=x", code=2)


def test_a_command_that_is_none_is_one_sentence(capsys):
    for given, message in ((["tran"], "invalid choice: 'tran'"), ([], "give a command")):
        text = said(capsys, *given, code=2)
        assert message in text and text.count("\n") == 1


def test_a_configuration_that_is_none_is_one_sentence(capsys):
    for name in ("train", "compare", "study"):
        text = said(capsys, name, "--config", "digitz", code=2)
        assert "there is no configuration 'digitz'" in text and text.count("\n") == 1


def test_a_runs_table_and_files_are_shown(capsys, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").touch()
    text = said(capsys, "show", str(tmp_path))
    assert "87.50" in text and "1:30" in text and "elr" in text
    assert "model.safetensors: trained models: l2t_ray.load_model" in text and "figures/a.png" in text
    assert "suspects" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no run"), ("{", "is damaged; --resume"), ("3", "is damaged"), ("[[]]", "is damaged")],
)
def test_what_is_no_finished_run_is_refused(capsys, tmp_path, content, message):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert message in said(capsys, "show", str(tmp_path), code=2)


def test_a_run_that_is_not_finished_is_said_to_be_so(capsys, tmp_path):
    (tmp_path / "config.yaml").touch()
    assert "is not finished; --resume" in said(capsys, "show", str(tmp_path), code=2)


def test_suspects_are_listed_from_the_worst(capsys, tmp_path):
    lines = ["index,given_label,suggested_label,score", *(f'{i},"cat, [b]",dog,0.{9 - i}00000' for i in range(5))]
    (tmp_path / "suspects-elr.csv").write_text("\n".join(lines) + "\n")
    text = said(capsys, "suspects", str(tmp_path), "--arm", "elr", "--top", "2")
    assert "0.900000" in text and "0.800000" in text and "0.700000" not in text and "cat, [b]" in text
    assert "2 of 5 labels in whose place another class is suggested; all 5 training labels are ranked in" in text
    assert "holds no suspects.csv; there is suspects-elr.csv: see --arm" in said(
        capsys, "suspects", str(tmp_path), code=2
    )
    assert "--top must be at least 1, got 0" in said(capsys, "suspects", str(tmp_path), "--top", "0", code=2)
    (tmp_path / "suspects-elr.csv").unlink()
    assert "such as method=recommended" in said(capsys, "suspects", str(tmp_path), code=2)
