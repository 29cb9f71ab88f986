"""The job that compares methods on noisy labels, as a user meets it."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from l2t_ray.methods.mw_net import MWNetConfig
from l2t_ray.methods.slf import SLFConfig
from l2t_ray.reports import comparison_table as table
from l2t_ray.reports import figures
from l2t_ray.run import Experiment, conduct
from l2t_ray.settings.experiment import TrainingConfig
from l2t_ray.studies.comparison import SHORT, Comparison
from l2t_ray.studies.outcome import run_trial

JOB = Path(__file__).parents[2] / "jobs" / "noisy_labels.py"
SMALL = [
    "tracking.mlflow=false",
    "data.num_train=60",
    "data.num_validation=20",
    "student.name=lenet",
    "training={num_rounds: 3, num_steps: 2, batch_size: 10, val_batch_size: 20, eval_every: 2, checkpoint_every: 1}",
    "controls=[cross_entropy, mw_net]",
    "method={loss: {init: released, hidden: 4, label_entries: constant}, teacher: adam}",
]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(figures, "write_figures", lambda *a, **k: [])  # a trial's own pictures take most of its time
    return tmp_path


def job(*arguments, code=0):
    spec = importlib.util.spec_from_file_location("noisy_labels_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output, actual = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            module.main(["--config", "configs/digits_noise40.yaml", *SMALL, "ray.enabled=false", *arguments])
        except SystemExit as exit:
            actual = exit.code
    assert actual == code, output.getvalue()
    return output.getvalue()


def test_table_figures_and_what_is_done_is_not_done_again(work, monkeypatch):
    output = job("--seeds", "0,1")
    directory = work / "runs" / "digits_noise40"
    assert "6 trials, 0 of them done" in output and "mw_net, seed 1: finished, test accuracy 0." in output
    text = (directory / "table.md").read_text()
    assert text in output and [line.split()[1] for line in text.splitlines()[2:5]] == [
        "cross_entropy",
        "mw_net",
        "l2t_dln",
    ]
    assert all(" (2) " in line for line in text.splitlines()[2:5])
    assert "Validation: fixed 20 with clean labels." in text and "6 steps of 10 images for every method" in text
    assert parquet.read_table(directory / "trials.parquet").num_rows == 6
    names = {path.name for path in (directory / "figures").iterdir()}
    assert names >= {"table.png", "confusion.png", "wrong_labels.png", "sample_weights.png", "accuracy_and_error.png"}
    noise = json.loads((directory / "l2t_dln" / "seed0" / "noise.json").read_text())
    assert noise["num_images"] == 60 and 0.2 < noise["realised_rate"] < 0.6 and len(noise["matrix"]) == 10

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "run", lambda *a, **k: pytest.fail("trained again"))
        assert "6 trials, 6 of them done" in job("--seeds", "0,1")
    assert "2 trials, 1 of them done" in job("--seeds", "1,2", "--only", "mw_net")
    assert "(3)" in (directory / "table.md").read_text().splitlines()[3]


def test_an_interrupted_trial_goes_on_from_its_checkpoint(work, monkeypatch):
    job("--seeds", "0", "--only", "mw_net", "name=whole")
    whole, cut = (work / "runs" / name / "mw_net" / "seed0" for name in ("whole", "cut"))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conduct, "write_results", stopped)
        assert "the same command goes on" in job("--seeds", "0", "--only", "mw_net", "name=cut", code=130)
    assert not (cut / "outcome.json").exists() and any((cut / "checkpoints").iterdir())
    job("--seeds", "0", "--only", "mw_net", "name=cut")
    numbers = [json.loads((path / "outcome.json").read_text())["numbers"] for path in (whole, cut)]
    for key in ("test_accuracy", "selected_test_accuracy", "reproduced", "test_error"):
        assert numbers[0][key] == numbers[1][key]


@pytest.mark.filterwarnings("default:cross_entropy diverged")
def test_divergence_is_a_result(work):
    output = job("--seeds", "0", "--only", "cross_entropy", "training.learning_rate=1e9")
    assert "diverged" in output and "1 of 1" in (work / "runs/digits_noise40/table.md").read_text()


def test_other_settings_in_the_same_directory_are_refused():
    job("--seeds", "0", "--only", "cross_entropy")
    message = job("--seeds", "0", "--only", "cross_entropy", "training.learning_rate=0.2", code=2)
    assert "was trained with other settings (training.learning_rate 0.1, now 0.2)" in message
    assert "choose among these" in job("--only", "mwnet", code=2)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_mlflow_holds_the_same_table(work):
    job("--seeds", "0", "--only", "cross_entropy", "tracking.mlflow=true")
    directory = work / "runs" / "digits_noise40"
    parent = json.loads((directory / "mlflow_run.json").read_text())
    (tracked,) = table.from_mlflow(parent["tracking_uri"], "l2t_ray", parent["run_id"])
    (on_disk,) = table.from_directories(directory)
    assert (tracked.arm, tracked.seed) == (on_disk.arm, on_disk.seed) == ("cross_entropy", 0)
    for name in ("test_accuracy", "best_test_accuracy", "reproduced", "peak_memory_mb"):
        assert tracked.numbers[name] == pytest.approx(on_disk.numbers[name])
    assert tracked.numbers["peak_memory_mb"] > 100


@pytest.mark.ray
def test_trials_side_by_side_are_those_of_one_process(work):
    job("--seeds", "0", "--only", "mw_net", "name=alone")
    job("--seeds", "0", "--only", "mw_net,cross_entropy", "name=beside", "ray.enabled=true")
    alone, beside = (
        json.loads((work / "runs" / name / "mw_net/seed0/outcome.json").read_text())["numbers"]
        for name in ("alone", "beside")
    )
    assert beside["test_error"] == alone["test_error"]
    assert alone["peak_memory_mb"] > 100 and beside["peak_memory_mb"] > 100
    assert (work / "runs/beside/mw_net/seed0/figures").is_dir()


def test_a_trial_that_fails_is_named_and_the_others_go_on(work, monkeypatch):
    def burning(trial, tracker):
        if trial.cell == ("mw_net",):
            raise RuntimeError("the machine is on fire")
        return run_trial(trial, tracker)

    monkeypatch.setattr("l2t_ray.studies.sweep.run_trial", burning)
    said = job("--seeds", "0", "--only", "mw_net,cross_entropy", "name=broken", code=1)
    assert "failed: 1 of 2 trials stopped: mw_net, seed 0: RuntimeError: the machine is on fire." in said
    assert (work / "runs/broken/cross_entropy/seed0/outcome.json").exists()


def test_each_paper_has_its_schedule():
    def own_schedule(method, num_train):
        return TrainingConfig(**method.paper_schedule.training(num_train, num_steps=15))

    mw_net = own_schedule(MWNetConfig(), 50_000)
    assert mw_net.num_rounds * 15 == 60_000 and mw_net.decay == "drops"  # drops after 40,000 and 50,000
    assert [round(share * 60_000) for share in mw_net.drops] == [40_000, 50_000]
    slf = own_schedule(SLFConfig(), 25_000)
    assert slf.num_rounds * 15 == 37_500 and slf.batch_size == 25 and slf.momentum == 0
    made = Comparison.of(Path("configs/digits_noise40.yaml"), SMALL, budget="protocol", seeds=[0])
    by_arm = {trial.cell[0]: trial.config.training for trial in made.trials()}
    assert by_arm[SHORT] == made.config.training and by_arm["cross_entropy"].num_rounds == 60
    assert made.directory.name == "digits_noise40-protocol"
