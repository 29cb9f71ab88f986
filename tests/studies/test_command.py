"""A study from the command line to MLflow and the report."""

import json
import sys
from pathlib import Path

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.studies.command import main
from l2t_ray.studies.log import COMPLETE, ROLE
from l2t_ray.tracking.mlflow import MlflowTracker
from l2t_ray.tracking.runs import find_runs

# MLflow's table definitions on SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_ambient_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_one_command_to_a_table_an_mlflow_tree_and_a_page(write, tmp_path, capsys, monkeypatch):
    runs, config = tmp_path / "runs", write(table="Table 9", grid={}, sizes={"digits": {"seeds": 1}})
    command = ["--config", str(config), "--runs", str(runs), "--in-turn"]
    monkeypatch.setattr("l2t_ray.studies.log.PATIENCE_S", 300.0)  # MLflow's import alone can take a minute
    main(None, [*command, "tracking.mlflow=true"])
    said = capsys.readouterr().out
    assert "[2/2]" in said and "| learned" in said

    uri = f"sqlite:///{runs / 'mlflow.db'}"
    (parent,) = find_runs(uri, "l2t_ray", tags={ROLE: "study"})
    assert (parent.name, parent.status, parent.tags["table"]) == ("tiny-digits", "FINISHED", "Table 9")
    children = find_runs(uri, "l2t_ray", parent_run_id=parent.run_id)
    results = json.loads((runs / "tiny-digits/results.json").read_text())
    assert {(run.tags["cell"], run.status, run.params["seed"]) for run in children} == {
        ("cross-entropy", "FINISHED", "0"),
        ("learned", "FINISHED", "0"),
    }
    for run in children:
        (values,) = (cell["values"] for cell in results["cells"] if cell["cell"] == [run.tags["cell"]])
        assert values == [run.metrics["final/test_accuracy"]]
        assert parent.metrics[run.tags["cell"]] == values[0]

    monkeypatch.setattr(sys, "argv", ["report.py"])
    sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
    import report

    sys.path.pop(0)
    report.main(["--runs", str(runs), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report/index.html").read_text()
    assert "Table 9: Small (digits)" in page and "jobs/study.py --config" in page

    # What MLflow lost is sent by the next one, and nothing is trained again.
    trial = next((runs / "tiny-digits/trials").iterdir())
    for name in ("mlflow_run.json", COMPLETE):
        (trial / name).unlink()
    main(None, ["--resume", str(runs / "tiny-digits"), "--in-turn", "--quiet"])
    assert len(find_runs(uri, "l2t_ray", parent_run_id=parent.run_id)) == 3
    assert (trial / COMPLETE).exists()


def test_without_a_store_the_study_goes_on(write, tmp_path, monkeypatch, capsys):
    """The store is waited for once, not for each row; what it lacks stays marked as lacking."""
    monkeypatch.setattr("l2t_ray.studies.log.PATIENCE_S", 0.1)
    waits = []
    wait = MlflowTracker.wait_for_run_id
    monkeypatch.setattr(
        MlflowTracker, "wait_for_run_id", lambda self, timeout: waits.append(timeout) or wait(self, timeout)
    )
    config = write(grid={}, settings={"tracking.mlflow": True, "tracking.uri": "http://127.0.0.1:1"})
    main(None, ["--config", str(config), "--runs", str(tmp_path / "runs"), "--in-turn"])
    assert "| learned" in capsys.readouterr().out
    assert waits[0] == 0.1 and set(waits[1:]) == {0.0}
    assert not list((tmp_path / "runs").rglob(COMPLETE))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "error: which study? give --config FILE"),
        (["--config", "nowhere.yaml"], "error: cannot read the configuration"),
        (["--resume", "nowhere"], "holds no study"),
        (["--resume", "nowhere", "training.num_rounds=2"], "error: --resume goes on with the study as it was begun"),
        (["--config", "{tiny}", "--seeds", "0"], "error: --seeds must be at least 1, got 0."),
        (["--config", "{tiny}", "--size", "full"], "error: --size is full; this study's sizes are: none."),
        (["--config", "{tiny}", "training.num_rounds"], "error: override 'training.num_rounds' is not of the form"),
        (["--config", "{tiny}", "data.name=cifar10", "data.root=/nowhere"], "/nowhere"),
        (["--config", "{tiny}", "student.name=resnet9"], "error: student.name in trial 'cross-entropy, 0.05'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(write, capsys, arguments, sentence):
    tiny = str(write())
    with pytest.raises(SystemExit) as caught:
        main(None, [tiny if argument == "{tiny}" else argument for argument in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_as_many_trials_at_once_as_there_is_room_for():
    from l2t_ray.studies.on_tune import resources_of_driver, trials_at_once

    cluster = {"CPU": 8.0, "GPU": 2.0}
    plain = ExperimentConfig.model_validate({"ray": {"enabled": False}})
    train = ExperimentConfig.model_validate({"ray": {"num_workers": 3}})
    gpus = ExperimentConfig.model_validate({"ray": {"num_workers": 1, "use_gpu": True, "cpus_per_worker": 2}})
    assert [trials_at_once(config, cluster) for config in (plain, train, gpus)] == [8, 2, 2]
    assert resources_of_driver(train)["CPU"] < 0.1  # else drivers would hold the CPUs that their workers wait for
    with pytest.raises(UserError, match=r"needs 1 CPU, 1 GPU and the cluster has 4 CPU, 0 GPU; set ray\.num_workers"):
        trials_at_once(
            gpus.model_copy(update={"ray": gpus.ray.model_copy(update={"cpus_per_worker": 1})}), {"CPU": 4.0}
        )
