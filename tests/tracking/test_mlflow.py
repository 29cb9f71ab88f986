"""`MlflowTracker` against real stores: one that works, one that is down, one that comes back."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from l2t_ray.assembly.trained_model import ModelCard, write_model
from l2t_ray.students.lenet import LeNet
from l2t_ray.tracking.deliveries import UsedData
from l2t_ray.tracking.mlflow import PENDING, MlflowTracker, recorded_run_id

# MLflow's table definitions on SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_ambient_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def directory(tmp_path) -> Path:
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(directory, **kwargs) -> MlflowTracker:
    return MlflowTracker.start(
        directory=directory,
        experiment="test",
        run_name="first",
        **{"method": "l2t_dln", "system_metrics": False, **kwargs},
    )


def rows(rounds, arm="l2t_dln"):
    return [{"arm": arm, "round": r, "val_error": 1.0 / (r + 1), "test_accuracy": None} for r in rounds]


def client(tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracker.uri)


def history(tracker, key):
    return [(m.step, m.value) for m in client(tracker).get_metric_history(tracker.run_id, key)]


def test_everything_can_be_read_back(directory):
    (directory / "figures").mkdir()
    (directory / "figures" / "loss.png").write_bytes(b"png")
    tracker = start(directory, tags={"dataset": "digits"}, parent_run_id="study")
    tracker.log_params({"student": {"lr": 0.1}, "note": "x" * 7000, "bad(name)": 1})
    tracker.log_rows([*rows(range(3)), {"arm": "cross_entropy", "round": 0, "val_error": float("nan"), "lr": 0.5}])
    (directory / "summary.json").write_text("[]")
    tracker.log_artifacts(str(directory / "figures"), str(directory / "summary.json"))
    tracker.finish("FINISHED")

    run = client(tracker).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params["student.lr"] == "0.1" and run.data.params["bad_name_"] == "1"
    assert len(run.data.params["note"]) == 500
    assert run.data.tags["dataset"] == "digits" and run.data.tags["mlflow.parentRunId"] == "study"
    assert history(tracker, "val_error") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert set(run.data.metrics) == {"val_error", "round", "cross_entropy/lr", "cross_entropy/round"}
    assert [f.path for f in client(tracker).list_artifacts(tracker.run_id)] == ["figures", "summary.json"]
    assert (directory.parent / "artifacts" / tracker.run_id / "artifacts" / "figures" / "loss.png").is_file()
    assert recorded_run_id(directory) == tracker.run_id
    assert not (directory / PENDING).exists()
    assert tracker.ui_command() == f"mlflow ui --backend-store-uri sqlite:///{directory.parent}/mlflow.db"


@pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning")  # of MLflow's own modules
def test_the_data_set_and_the_models_are_listed_once_however_often_the_run_ends(directory):
    import mlflow

    student = LeNet(num_classes=2, in_channels=1, image_size=8)
    card = ModelCard("l2t_dln", "classification", {"name": "lenet"}, ("a", "b"), 8, (0.5,), (0.25,))
    write_model(directory / "model.safetensors", student, card)
    data = UsedData("digits", {"training images": "1", "test images": "2"}, {"data.root": "https://me:secret@there"})
    for _ in range(2):
        tracker = start(directory, run_id=recorded_run_id(directory))
        tracker.log_data(data)
        tracker.log_models({"l2t_dln": directory / "model.safetensors"}, loader="l2t_ray.run.served_model")
        tracker.finish()
    run = client(tracker).get_run(tracker.run_id)
    used = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {context: (one.name, one.profile) for context, one in used.items()} == {
        "training": ("digits", '{"training images": "1"}'),
        "testing": ("digits", '{"test images": "2"}'),
    }
    assert len({one.digest for one in used.values()}) == 2 and "secret" not in used["training"].source
    (listed,) = client(tracker).search_logged_models([run.info.experiment_id])
    assert (listed.name, str(listed.status), listed.source_run_id) == ("l2t_dln", "READY", tracker.run_id)
    assert [one.model_id for one in run.outputs.model_outputs] == [listed.model_id]
    mlflow.set_tracking_uri(tracker.uri)
    try:
        served = mlflow.pyfunc.load_model(f"models:/{listed.model_id}")
    finally:
        mlflow.set_tracking_uri(None)
    pixels = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    expected = student.eval()(torch.full((3, 1, 8, 8), -2.0)).detach().numpy()
    np.testing.assert_allclose(served.predict(pixels), expected, rtol=1e-6)


def test_what_cannot_be_delivered_is_named_and_holds_nothing_up(directory):
    warnings = []
    tracker = start(directory, warn=warnings.append)
    tracker.log_models({"l2t_dln": directory / "absent.safetensors"}, loader="nowhere")
    tracker.log_rows(rows(range(2)))
    (directory / "summary.json").write_text("[]")
    tracker.log_artifacts(str(directory / "summary.json"))
    tracker.finish()
    assert "the model of l2t_dln could not be copied to MLflow" in warnings[-1]
    assert [one.path for one in client(tracker).list_artifacts(tracker.run_id)] == ["summary.json"]
    assert [step for step, _ in history(tracker, "val_error")] == [0, 1]


def test_store_that_is_down_costs_no_time_and_no_rows(directory, closed_port, tmp_path):
    warnings = []
    calls = []

    def timed(call, *args, **kwargs):
        began = time.perf_counter()
        result = call(*args, **kwargs)
        calls.append(time.perf_counter() - began)
        return result

    down = timed(start, directory, uri=f"http://user:hunter2@127.0.0.1:{closed_port}", warn=warnings.append)
    timed(down.log_params, {"lr": 0.1})
    deadline = time.monotonic() + 60
    sent = 0
    while not warnings and time.monotonic() < deadline:  # training goes on while MLflow is imported and fails
        timed(down.log_rows, rows([sent]))
        sent += 1
        time.sleep(0.05)
    timed(down.log_rows, rows(range(sent, sent + 100)))
    num_rows = sent + 100

    assert sorted(calls)[int(0.99 * len(calls))] < 0.05  # one call may meet a pause of a busy machine
    assert len(warnings) == 1 and "cannot be written" in warnings[0] and str(PENDING) in warnings[0]
    assert "hunter2" not in warnings[0] and "***@127.0.0.1" in warnings[0]
    assert down.run_id is None
    journal = [json.loads(line) for line in (directory / PENDING).read_text().splitlines()]
    assert [row["round"] for row in journal] == list(range(num_rows))

    began = time.perf_counter()
    down.finish("FAILED")
    assert time.perf_counter() - began < 30
    assert f"{num_rows} rows stay" in warnings[-1]
    with (directory / PENDING).open("a") as file:
        file.write('{"arm": "l2t_dln", "rou')  # torn by a kill

    up = start(directory, uri=f"sqlite:///{tmp_path}/elsewhere.db")
    up.log_rows(rows(range(num_rows - 5, num_rows + 5)))  # resumed from a checkpoint five rounds back
    up.finish()
    assert [step for step, _ in history(up, "val_error")] == list(range(num_rows + 5))
    assert not (directory / PENDING).exists()


def test_resumed_run_sends_no_row_twice_and_warns_of_changed_params(directory):
    first = start(directory)
    first.log_params({"lr": 0.1, "seed": 0})
    first.log_rows(rows(range(10)))
    first.finish("KILLED")

    warnings = []
    second = start(directory, run_id=recorded_run_id(directory), warn=warnings.append)
    second.log_params({"lr": 0.2, "seed": 0, "new": True})
    second.log_rows([{**row, "val_error": 7.0} for row in rows(range(5, 12))])
    second.log_rows(rows([3], arm="cross_entropy"))
    second.finish()

    assert second.run_id == first.run_id
    assert [step for step, _ in history(second, "val_error")] == list(range(12))
    assert history(second, "val_error")[5] == (5, 1 / 6)
    assert history(second, "cross_entropy/round") == [(3, 3.0)]
    assert len(warnings) == 1 and "lr = 0.1 (now 0.2)" in warnings[0] and "seed" not in warnings[0]
    params = client(second).get_run(second.run_id).data.params
    assert params == {"lr": "0.1", "seed": "0", "new": "True"}


@pytest.mark.failure("MLflow store gone for a while", "this process", ends="all rows arrive")
def test_rows_of_a_store_that_comes_back_arrive_within_the_run(tmp_path, directory):
    blocked = tmp_path / "store"
    blocked.write_text("a file where the folder should be")
    warnings = []
    tracker = start(directory, uri=f"sqlite:///{blocked}/mlflow.db", warn=warnings.append)
    tracker.log_rows(rows(range(3)))
    deadline = time.monotonic() + 30
    while not warnings and time.monotonic() < deadline:
        time.sleep(0.05)
    blocked.unlink()
    tracker.log_rows(rows(range(3, 6)))
    assert tracker.wait_for_run_id(60) is not None
    tracker.finish()
    assert [step for step, _ in history(tracker, "val_error")] == list(range(6))
    assert len(warnings) == 1


def test_a_row_is_never_split_and_long_backlogs_are_sent_whole(directory):
    tracker = start(directory)
    tracker.log_rows([{"arm": "a", "round": r, **{f"m{i}": float(i) for i in range(300)}} for r in range(8)])
    tracker.log_rows([{"arm": "wide", "round": 0, **{f"m{i}": float(i) for i in range(2500)}}])
    tracker.finish()
    assert [step for step, _ in history(tracker, "a/m299")] == list(range(8))
    assert history(tracker, "wide/m2499") == [(0, 2499.0)]


def test_system_metrics_are_bound_to_the_run_and_stop(directory, monkeypatch):
    import threading

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = start(directory, system_metrics=True)
    tracker.wait_for_run_id(60)
    time.sleep(2)
    tracker.finish()
    metrics = client(tracker).get_run(tracker.run_id).data.metrics
    assert any(key.startswith("system/cpu") for key in metrics)
    assert not [t for t in threading.enumerate() if t.name in ("SystemMetricsMonitor", "mlflow-tracker")]


def test_server_from_the_environment(monkeypatch, directory, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    tracker = start(directory, warn=lambda text: None)
    assert tracker.ui_command() == f"python -m webbrowser http://127.0.0.1:{closed_port}"
    tracker.finish("KILLED")


def test_runs_are_found_by_parent_and_tags(tmp_path):
    from l2t_ray.tracking.runs import find_runs, metric_history

    trackers = []
    for i, parent in enumerate(["study", "study", "other"]):
        directory = tmp_path / "runs" / f"trial{i}"
        trackers.append(start(directory, parent_run_id=parent, tags={"note": f"it's {i}"}))
        trackers[-1].log_params({"seed": i})
        trackers[-1].log_rows(rows(range(2)))
        trackers[-1].finish()
    uri = trackers[0].uri
    trials = find_runs(uri, "test", parent_run_id="study")
    assert [trial.params["seed"] for trial in trials] == ["0", "1"]
    assert trials[0].metrics["val_error"] == 0.5 and trials[0].status == "FINISHED"
    assert metric_history(uri, trials[1].run_id, "val_error") == [(0, 1.0), (1, 0.5)]
    assert [r.name for r in find_runs(uri, "test", tags={"note": "it's 2"})] == ["first"]
    assert find_runs(uri, "nothing") == []


_BESIDE = """
import sys
from pathlib import Path
from l2t_ray.tracking.mlflow import MlflowTracker

import mlflow

directory = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
tracker = MlflowTracker.start(directory=directory, experiment="test", run_name="beside", system_metrics=False)
tracker.log_rows([{"arm": "l2t_dln", "round": 0, "val_error": 1.0}])
tracker.finish(timeout=100)
"""


def test_processes_that_make_the_same_store_at_once_both_arrive(tmp_path):
    """MLflow's own migrations race: a table that one process has made is another one's error, now and for good."""
    directories = [tmp_path / name for name in ("first", "second")]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", _BESIDE, directory], stdin=pipe, stdout=pipe, text=True)
        for directory in directories
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.wait(timeout=120)
    assert not [directory.name for directory in directories if (directory / PENDING).exists()]
    assert len({recorded_run_id(directory) for directory in directories} - {None}) == 2
