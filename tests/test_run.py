"""The main job as a user meets it: what it writes, how it resumes, what it says when something is wrong."""

import contextlib
import csv
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2t_ray import load_model, train_command
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.data.catalog import open_digits
from l2t_ray.interfaces import FailureLimitError
from l2t_ray.run import exit_codes
from l2t_ray.tracking.metrics import PARTS, TIMES, read_rows

JOB = Path(__file__).parents[1] / "jobs" / "cifar.py"
SMALL = [
    "ray.enabled=false",
    "tracking.mlflow=false",
    "student.name=lenet",
    "training.num_rounds=4",
    "training.num_steps=3",
    "training.eval_every=2",
    "training.checkpoint_every=2",
    "method.teacher.horizon=3",
    "method.loss.init=released",
]


def load_job():
    """`jobs/cifar.py` as a module: most tests call its `main` here, for a process of its own takes seconds to start."""
    spec = importlib.util.spec_from_file_location("cifar_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cifar(*arguments, cwd, code=0):
    """What the job prints when called with these arguments in a directory, after checking its exit code."""
    output = io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        actual = 0
        try:
            load_job().main(arguments)
        except SystemExit as exit:
            actual = exit.code
    assert actual == code, output.getvalue()
    return output.getvalue()


def test_the_command_itself(configs):
    """One run as the shell sees it."""
    command = [sys.executable, str(JOB), *SMALL, "training.num_rounds=1", "name=shell"]
    environment = {**os.environ, "PYTHONPATH": str(JOB.parents[1])}
    process = subprocess.run(command, cwd=configs, env=environment, text=True, capture_output=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "test accuracy" in process.stdout and "results in" in process.stdout
    assert process.stderr == ""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A directory to run in, with the shipped configurations."""
    directory = tmp_path_factory.mktemp("work")
    (directory / "configs").symlink_to(Path("configs").resolve())
    return directory


@pytest.fixture(scope="module")
def finished(configs):
    """The main job, run whole, with its self-check on."""
    output = cifar("--check-hypergradient", "--profile", *SMALL, "name=whole", cwd=configs)
    return configs / "runs" / "whole", output


def test_the_run_directory_holds_everything(finished):
    directory, _ = finished
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.yaml", "metrics.parquet", "summary.json", "figures", "loss.safetensors", "loss.md", "checkpoints",
    }  # fmt: skip
    assert {path.name for path in (directory / "figures").iterdir()} == {
        "accuracy_and_error.png", "loss_surfaces.png", "gradient_sums.png", "teacher_steps.png",
        "round_time.png", "confusion.png", "loss_weights.png", "loss_weights_over_rounds.png",
    }  # fmt: skip
    rows = read_rows(directory / "metrics.parquet")
    assert [(row["arm"], row["round"]) for row in rows] == [
        (arm, i) for arm in ("cross_entropy", "l2t_dln") for i in range(4)
    ]
    assert all(row["hypergradient_norm"] > 0 for row in rows if row["arm"] == "l2t_dln")
    summaries = json.loads((directory / "summary.json").read_text())
    assert [s["steps"] for s in summaries] == [12, 12]


def test_the_parts_of_a_round_add_up_to_its_time(finished):
    directory, _ = finished
    for row in read_rows(directory / "metrics.parquet"):
        parts = {part: row[f"seconds_{part}"] for part in PARTS}
        assert 0.5 * row["seconds"] < sum(parts.values()) <= row["seconds"]
        assert parts["data"] > 0 and parts["unroll"] > 0 and parts["collectives"] == 0
        assert (parts["hypergradient"] > 0) == (parts["teacher"] > 0) == (row["arm"] == "l2t_dln")


def test_a_profile_is_a_trace_with_the_parts_by_name(finished):
    directory, _ = finished
    for arm, names in (("cross_entropy", {"data", "unroll"}), ("l2t_dln", {"data", "unroll", "hypergradient"})):
        trace = json.loads(gzip.decompress((directory / "profile" / f"{arm}.json.gz").read_bytes()))
        spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]  # with a start and a duration
        assert all(event["dur"] >= 0 and "ts" in event for event in spans)
        assert names <= {event["name"] for event in spans}
        assert sum(event["name"] == "data" for event in spans) == 2  # rounds


def test_the_self_check_compares_with_naive_autograd(finished):
    _, output = finished
    match = re.search(r"relative error: float64 (\S+), float32 (\S+), finite differences (\S+)", output)
    assert match, output
    assert float(match[1]) < 1e-10
    assert float(match[2]) < 1e-4 and float(match[3]) < 1e-3


def test_the_learned_loss_loads_and_trains(finished):
    directory, _ = finished
    loss = LearnedLoss.load(directory / "loss.safetensors")
    logits = torch.zeros(6, 10, requires_grad=True)
    loss(logits, torch.arange(6)).backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_the_model_that_is_left_gives_the_predictions_that_are_left(finished):
    directory, _ = finished
    model, test = load_model(directory), open_digits().test
    with torch.no_grad():
        probabilities, said = model(model.preprocess(test.images.copy())).softmax(dim=1).max(dim=1)
    with (directory / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["prediction"]) for line in lines] == said.tolist()
    np.testing.assert_allclose([float(line["probability"]) for line in lines], probabilities, atol=2e-6)
    accuracy = np.mean([line["prediction"] == line["label"] for line in lines])
    summaries = json.loads((directory / "summary.json").read_text())
    assert accuracy == pytest.approx(summaries[-1]["test_accuracy"])


def test_the_same_command_gives_the_same_numbers(finished, configs):
    directory, _ = finished
    cifar("--quiet", *SMALL, "name=again", cwd=configs)
    assert deterministic_part(directory) == deterministic_part(configs / "runs" / "again")


def test_quiet_says_nothing(configs):
    assert cifar("--quiet", *SMALL, "training.num_rounds=1", "name=quiet", cwd=configs) == ""


def deterministic_part(directory):
    """Metrics but for wall times, and every tensor of the last checkpoint."""
    rows = read_rows(directory / "metrics.parquet")
    last = sorted((directory / "checkpoints").iterdir())[-1]
    tensors = {path.name: torch.load(path, weights_only=True) for path in last.glob("*.pt")}
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows], repr_exact(tensors)


def repr_exact(value):
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: repr_exact(item) for key, item in value.items()}
    return [repr_exact(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("num_kept", [1, 4])
def test_an_interrupted_run_resumes_bit_for_bit(finished, configs, num_kept):
    """Checkpoints exist after rounds 2 and 4 of either arm; everything after the first few of them is thrown away."""
    directory, _ = finished
    name = f"checkpoint{num_kept}"
    cifar("--quiet", *SMALL, "training.keep_checkpoints=9", f"name={name}", cwd=configs)
    checkpoint = configs / "runs" / name
    for path in sorted((checkpoint / "checkpoints").iterdir())[num_kept:]:
        shutil.rmtree(path)
    for path in ("metrics.parquet", "summary.json", "loss.safetensors"):
        (checkpoint / path).unlink()
    cifar("--quiet", "--resume", str(checkpoint), cwd=configs)
    assert deterministic_part(checkpoint) == deterministic_part(directory)


def interrupted(directory, name):
    """A copy of a finished run, as it was when only its first checkpoint and its configuration were there."""
    copy = directory.with_name(name)
    shutil.copytree(directory, copy)
    for path in sorted((copy / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    for path in ("metrics.parquet", "summary.json", "loss.safetensors"):
        (copy / path).unlink()
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("name: whole", f"name: {name}"))
    return copy


def test_the_same_command_goes_on_with_an_interrupted_run(finished, configs):
    directory, _ = finished
    copy = interrupted(directory, "again-and-again")
    output = cifar(*SMALL, "name=again-and-again", cwd=configs)
    assert "from round" in output
    assert deterministic_part(copy) == deterministic_part(directory)


def test_another_command_does_not_go_on_with_an_interrupted_run(finished, configs):
    interrupted(finished[0], "other")
    output = cifar(*SMALL, "name=other", "seed=3", cwd=configs, code=2)
    assert "holds a run already, and seed is 0 there and 3 here" in output


def test_a_disk_that_is_full_at_the_end_is_one_sentence(finished, configs):
    copy = interrupted(finished[0], "full")
    (copy / "summary.json").mkdir()  # so that it cannot be written
    output = cifar("--quiet", "--resume", str(copy), cwd=configs, code=2)
    assert output.startswith("error: cannot write the results to") and output.count("\n") == 1, output


def test_too_many_failures_are_one_sentence_and_exit_code_1(capsys):
    with pytest.raises(SystemExit) as stopped, exit_codes():
        raise FailureLimitError("training failed more than ray.max_failures=3 times")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "failed: training failed more than ray.max_failures=3 times\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "cannot read the configuration none.yaml"),
        (["training.lerning_rate=1"], "did you mean training.learning_rate?"),
        (["--resume", "runs/none"], "holds no run"),
        ([*SMALL, "name=whole"], "holds a finished run already; set another name="),
        (["data.name=cifar10", "data.root=nowhere", "data.download=false"], "cifar-10"),
        (["data.num_validation=5"], "data.num_validation=5"),
        (["data.num_validation=1500"], "data.num_validation"),
        (["training.batch_size=2000", "training.num_steps=1"], "training.batch_size=2000 is more than the"),
        (["training.val_batch_size=500"], "training.val_batch_size=500 is more than the"),
        (["method=cross_entropy", "controls=[]", "--check-hypergradient"], "--check-hypergradient needs"),
        (["device=cuda"], "torch sees no CUDA device"),
        (["runs=/proc/none"], "cannot write to /proc/none"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(finished, configs, arguments, message):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    settings = [] if "--resume" in arguments else SMALL[:3]
    output = cifar(*settings, *arguments, cwd=configs, code=2)
    assert message in output
    assert output.startswith("error: ") and output.count("\n") == 1, output


def test_an_override_that_changes_a_resumed_run_is_refused(finished, configs):
    directory, _ = finished
    output = cifar("--resume", str(directory), "seed=3", cwd=configs, code=2)
    assert "override 'seed=3' would change a resumed run" in output


@pytest.mark.filterwarnings("default:l2t_dln diverged")
def test_an_arm_that_diverges_is_given_up_and_the_others_go_on(configs):
    cifar(
        *SMALL, "training.num_rounds=6", "training.learning_rate=0.05", "method=cross_entropy", "name=half",
        "controls=[{name: l2t_dln, loss: {init: linear, hidden: 4, slope: free}, "
        "teacher: {name: adam, step_size: 1e30}}]",
        "--quiet", cwd=configs, code=3,
    )  # fmt: skip
    summaries = json.loads((configs / "runs/half/summary.json").read_text())
    assert [(s["arm"], s["diverged"]) for s in summaries] == [("l2t_dln", True), ("cross_entropy", False)]
    assert summaries[0]["test_accuracy"] is None and summaries[0]["rounds"] < 6
    assert summaries[1]["test_accuracy"] > 0 and summaries[1]["rounds"] == 6
    output = cifar("--resume", "runs/half", "--quiet", cwd=configs, code=3)  # nothing is left to be done
    assert "l2t_dln diverged in round" in output


@pytest.mark.filterwarnings("default:l2t_dln diverged")
def test_divergence_names_the_round_and_keeps_the_checkpoint(configs):
    output = cifar(
        *SMALL, "training.num_rounds=40", "training.learning_rate=1e6", "controls=[]", "name=diverged", "--quiet",
        "training.checkpoint_every=1", cwd=configs, code=3,
    )  # fmt: skip
    assert re.match(r"diverged: l2t_dln diverged in round \d+: .*; try a smaller training.learning_rate", output)
    assert output.count("\n") == 1


def test_an_exact_engine_that_is_not_exact_ends_the_job(capsys):
    class Inexact:
        def __init__(self, is_exact, float64=1e-3, differences=1e-6):
            self._is_exact, self._float64, self._differences = is_exact, float64, differences

        def check_hypergradient(self):
            return {"float64": self._float64, "float32": 1e-3, "finite differences": self._differences}, self._is_exact

    with pytest.raises(SystemExit, match=r"float64 1.0e-03.*must stay below 1e-09"):
        train_command.check_hypergradient(Inexact(True), quiet=True)
    train_command.check_hypergradient(Inexact(False), quiet=False)
    assert "(an approximation)" in capsys.readouterr().out
    for is_exact in (True, False):
        with pytest.raises(SystemExit, match=r"finite differences 3.0e-01; autograd itself must stay below 0.02"):
            train_command.check_hypergradient(Inexact(is_exact, 1e-15, 0.3), quiet=True)
    train_command.check_hypergradient(Inexact(True, 1e-15), quiet=False)
    assert "finite differences 1.0e-06" in capsys.readouterr().out


def test_what_was_converted_of_own_images_is_said_once(configs, tmp_path):
    for part in ("train", "test"):
        for label in range(2):
            (tmp_path / part / f"class{label}").mkdir(parents=True)
            for i in range(6):
                deep = np.full((8, 8), 4000 * label + i, dtype=np.uint16)
                Image.fromarray(deep).save(tmp_path / part / f"class{label}" / f"{i}.png")
    (tmp_path / "train" / ".DS_Store").write_text("")
    own = [
        "data.name=folder",
        f"data.root={tmp_path}",
        "data.num_validation=4",
        "data.augment=none",
        "data.noise.kind=none",
    ]
    sizes = ["training.num_rounds=1", "training.batch_size=2", "training.val_batch_size=2", "data.noise.rate=0"]
    output = cifar(*SMALL, *own, *sizes, "name=own", cwd=configs)
    notes = [line for line in output.splitlines() if line.startswith("data: ")]
    assert notes == [
        f"data: {tmp_path}/train: 1 hidden files or folders skipped",
        "data: 24 of 24 images converted from 16 or 32 bit: 0..4095 (12 bit; the largest value is 4005) became 0..255",
    ]
