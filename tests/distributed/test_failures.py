"""Parts of a run die, hang or run full, each for real, and it ends as if nothing had happened: to the last bit.

The table in docs/reliability.md is written by these tests: `make matrix`.
"""

import re
import threading
import time
from signal import SIGKILL, SIGSTOP

import pytest
import sabotage
from sabotage import Blow
from same_end import LONGER, assert_same_end

from l2t_ray.distributed import launch, worker
from l2t_ray.tracking.mlflow import recorded_run_id

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # what was lost is told by a warning, from a thread that must live on
]

KILL, STOP = SIGKILL, SIGSTOP
SPARES_WORKERS = "going on from the last checkpoint \\(loss 1 of"
RESTARTS_WORKERS = "going on from the last checkpoint \\(failure 1 of"
IN_TWO_WORKERS = {
    "worker killed in the middle of an unroll": (None, KILL, [], ["lost worker .*" + RESTARTS_WORKERS]),
    "teacher killed between proposal and answer": (KILL, None, [], ["the teacher died.*" + SPARES_WORKERS]),
    "worker and teacher killed": (KILL, KILL, [], ["the teacher died", "lost worker"]),
    "worker hangs": (None, STOP, ["ray.timeout_s=15"], ["waited ray.timeout_s=15 s .*: worker 1 hangs"]),
    "teacher hangs": (STOP, None, ["ray.timeout_s=15"], ["the teacher did not answer within ray.timeout_s=15 s"]),
}


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(
            name,
            marks=pytest.mark.failure(name, "2 workers"),
            id=name.replace(" ", "_"),
        )
        for name in IN_TWO_WORKERS
    ],
)
def test_parts_that_fail_change_nothing(
    failure, ray_cluster, undisturbed, small_experiment, tmp_path, monkeypatch, capsys
):
    teacher_signal, worker_signal, overrides, notes = IN_TWO_WORKERS[failure]
    sabotage.register()
    marks = []
    if teacher_signal:
        marks.append(tmp_path / "teacher struck")
        blow = Blow(marks[-1], round=10, signal=teacher_signal)
        monkeypatch.setattr(launch, "first_teacher", sabotage.teacher_struck(blow))
    if worker_signal:
        marks.append(tmp_path / "worker struck")
        blow = Blow(marks[-1], round=25, signal=worker_signal)
        monkeypatch.setattr(worker, "train_worker", sabotage.worker_struck(blow, rank=1))
    experiment = small_experiment(tmp_path / "struck", LONGER, *overrides)
    experiment.run()
    assert all(mark.exists() for mark in marks)
    said = capsys.readouterr().out
    for note in notes:
        assert re.search(note, said), said
    assert_same_end(experiment.directory, undisturbed)


@pytest.mark.failure("MLflow store gone for a while", "2 workers", ends="all rows arrive")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_a_store_that_comes_back_while_workers_train_has_all_rows(
    ray_cluster, undisturbed, small_experiment, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "store"
    uri = f"sqlite:///{store}/mlflow.db"
    store.write_text("a file where the folder should be")
    experiment = small_experiment(tmp_path / "tracked", LONGER, "tracking.mlflow=true", f"tracking.uri={uri}")

    def come_back():
        while not list((experiment.directory / "checkpoints").glob("0*")):
            time.sleep(0.05)
        store.unlink()

    threading.Thread(target=come_back, daemon=True).start()
    experiment.run(quiet=True)
    assert not store.is_file()
    run_id = recorded_run_id(experiment.directory)
    assert run_id is not None
    sent = MlflowClient(tracking_uri=uri).get_metric_history(run_id, "val_error")
    assert [metric.step for metric in sent] == list(range(40))
    assert_same_end(experiment.directory, undisturbed)
