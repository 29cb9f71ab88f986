"""What a job says of arguments that it does not take."""

import importlib.util
from pathlib import Path

import pytest

from l2t_ray.studies import command

JOBS = Path(__file__).parents[1] / "jobs"
SECRET = "XYZZYsecret"


def main_of(job):
    if job in ("ablation", "gradients", "lr_robustness", "similarity", "study"):
        return lambda arguments: command.main(None, arguments)
    spec = importlib.util.spec_from_file_location(job, JOBS / f"{job}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("job", ["cifar", "noisy_labels", "convergence", "report", "study"])
@pytest.mark.parametrize(
    "wrong", [f"--storage=s3://AKIAABCDEFGHIJKLMNOP:{SECRET}@b/x", f"--password={SECRET}", "--strange\nname"]
)
def test_an_option_that_is_unknown_is_one_sentence_without_credentials(job, wrong, capsys):
    required = ["--config=x.yaml"] if job == "noisy_labels" else []
    with pytest.raises(SystemExit) as exit:
        main_of(job)([*required, wrong])
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert said.count("\n") == 1 and said.startswith("error: unrecognized arguments: --")
    assert SECRET not in said


@pytest.mark.parametrize("job", sorted(path.stem for path in JOBS.glob("*.py")))
def test_every_job_reads_its_arguments_by_the_parser_that_masks(job):
    source = (JOBS / f"{job}.py").read_text()
    assert "ArgumentParser(" not in source
    commands = ("from l2t_ray.commands.", "l2t_ray.studies.command import main", "l2t_ray.train_command import main")
    assert "Parser(" in source or any(command in source for command in commands)
