"""Studies run to their end whatever is killed, and come to the same table as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from machines import cluster_of

from l2t_ray.reports.study import table
from l2t_ray.studies.outcome import run_trial
from l2t_ray.studies.search import Search
from l2t_ray.studies.study_results import collect
from l2t_ray.studies.sweep import Forwarder, run_in_turn
from l2t_ray.tracking.metrics import TIMES, read_rows

DIVERGES = pytest.mark.filterwarnings("ignore:.* diverged:UserWarning")
MAIN = Path(__file__).parents[2] / "jobs/study.py"


def trajectories(sweep):
    """All that was computed, times apart."""
    found = {}
    for trial in sweep.trials:
        rows = read_rows(trial.directory / "metrics.parquet")
        found[trial.name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return found


def values(sweep):
    return [(cell["cell"], cell["values"], cell["outcomes"]) for cell in collect(sweep, command="")["cells"]]


def on_tune_all(sweep, listener, *, at_once=None):
    from l2t_ray.studies.on_tune import run_on_tune

    search = Search(sweep, listener) if sweep.study.search == "optuna" else None
    run_on_tune(
        search or sweep.pending(),
        search or listener,
        state=sweep.directory / "tune",
        config=sweep.planned[0].config,
        asha=sweep.study.asha,
        at_once=at_once,
    )


def test_a_study_in_turn_ends_in_a_table(start, heard):
    sweep = start()
    run_in_turn(sweep.pending(), heard)
    assert sweep.pending() == [] and len(heard.ended) == 4 and not heard.failed
    assert len(heard.rows) == 4 * (4 + 1)  # of each trial the rounds and a closing row
    again = run_trial(sweep.trials[0], Forwarder(lambda rows: pytest.fail("trained again")))
    assert again == heard.ended[sweep.trials[0].name]
    results = collect(sweep, command="python jobs/study.py")
    headings, rows = table(results)
    assert headings == ["case / learning_rate", "0.05", "0.1"]
    for row, case in zip(rows, ("cross-entropy", "learned"), strict=True):
        expected = [heard.ended[t.name].numbers["test_accuracy"] for t in sweep.trials if t.cell[0] == case]
        assert row == [case, *(f"{100 * value:.2f}" for value in expected)]


@DIVERGES
def test_divergence_is_an_outcome_and_the_study_goes_on(start, heard):
    sweep = start(cases={}, grid={"training.learning_rate": [1.0e30, 0.1]})
    run_in_turn(sweep.pending(), heard)
    assert [outcome.kind for outcome in heard.ended.values()] == ["diverged", "finished"]
    (_, chance, kinds), _ = values(sweep)
    assert chance == [0.1] and kinds == ["diverged"]
    assert "†1" in table(collect(sweep, command=""))[1][0][1]
    assert sweep.pending() == []  # it would only diverge again


def test_a_trial_without_outcome_is_tried_again(start, heard, monkeypatch):
    sweep = start(cases={}, grid={"training.learning_rate": [0.05, 0.1]})
    broken = sweep.trials[0]

    def run(trial, tracker):
        if trial is broken:
            raise RuntimeError("the machine is on fire")
        return run_trial(trial, tracker)

    monkeypatch.setattr("l2t_ray.studies.sweep.run_trial", run)
    run_in_turn(sweep.pending(), heard)
    assert heard.failed == {broken.name: "RuntimeError: the machine is on fire"}
    assert sweep.pending() == [broken]


@DIVERGES
@pytest.mark.ray
def test_on_tune_as_in_turn(start, heard):
    """Numbers to the last bit, with a divergence among them, and two processes for five trials."""
    grid = {"training.learning_rate": [1.0e30, 0.1]}
    in_turn, on_tune = start("in_turn", grid=grid), start("on_tune", grid=grid)
    run_in_turn(in_turn.pending(), heard)
    ended = dict(heard.ended)
    heard.ended, heard.rows = {}, []
    on_tune_all(on_tune, heard)
    assert {name: outcome.kind for name, outcome in heard.ended.items()} == {n: o.kind for n, o in ended.items()}
    assert trajectories(on_tune) == trajectories(in_turn) and values(on_tune) == values(in_turn)
    assert not heard.failed


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_asha_stops_the_worse_trials(start, heard):
    """Three learning rates, of which one learns nothing: it does not get all of its rounds."""
    sweep = start(
        cases={},
        grid={"training.learning_rate": [0.1, 0.05, 1.0e-7]},
        settings={"training.num_rounds": 60, "training.num_steps": 10},
        asha={"grace_rounds": 4, "reduction": 3},
    )
    on_tune_all(sweep, heard, at_once=1)
    ended = [heard.ended[trial.name] for trial in sweep.trials]
    assert [outcome.kind for outcome in ended] == ["finished", ended[1].kind, "stopped"]
    assert ended[2].numbers["rounds"] < 60 and ended[2].numbers["test_accuracy"] < 0.5
    assert sweep.pending() == [] and values(sweep)[2][2] == ["stopped"]


LONG = {"settings": {"training.num_rounds": 40}}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_three_times_in_turn(start, heard):
    undisturbed, killed = start("undisturbed", **LONG), start("killed", **LONG)
    run_in_turn(undisturbed.pending(), heard)
    for num_ended in (0, 2, 3):
        _until(_begun(killed, "--in-turn"), killed, num_ended).kill_all()
    assert _begun(killed, "--in-turn").wait() == 0
    assert trajectories(killed) == trajectories(undisturbed) and values(killed) == values(undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ended", [0, 2], ids=["early", "late"])
def test_a_killed_driver_is_followed_by_another(start, heard, num_ended):
    undisturbed, killed = start("undisturbed", **LONG), start("killed", **LONG)
    run_in_turn(undisturbed.pending(), heard)
    _until(_begun(killed), killed, num_ended).kill_all()
    kept = {name: (killed.directory / "trials" / name).stat().st_mtime_ns for name in killed.outcomes()}
    assert num_ended <= len(kept) < 4
    assert _begun(killed).wait() == 0
    for name, changed in kept.items():
        assert (killed.directory / "trials" / name).stat().st_mtime_ns == changed  # not done again
    assert trajectories(killed) == trajectories(undisturbed) and values(killed) == values(undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_trial_goes_on_in_another_process(start, heard):
    undisturbed, killed = start("undisturbed", **LONG), start("killed", **LONG)
    run_in_turn(undisturbed.pending(), heard)
    driver = _until(_begun(killed), killed, 1)
    driver.kill_a_trial()
    assert driver.wait() == 0
    assert trajectories(killed) == trajectories(undisturbed) and values(killed) == values(undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_actor_that_dies_between_two_trials_costs_nothing(start, heard, monkeypatch, tmp_path):
    """Tune itself gives up the trial that it was on its way to."""
    from l2t_ray.studies import on_tune

    has_died = tmp_path / "died"

    class Dying(on_tune.TrialActor):
        def reset_config(self, new_config):
            if not has_died.exists():
                has_died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    bound = on_tune.tune.with_parameters
    monkeypatch.setattr(on_tune.tune, "with_parameters", lambda actor, **values: bound(Dying, **values))
    sweep = start()
    on_tune_all(sweep, heard, at_once=1)
    assert has_died.exists()
    assert not heard.failed and sweep.pending() == []
    assert [outcome.kind for outcome in heard.ended.values()] == ["finished"] * 4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lost_machine_costs_nothing(start, heard):
    """Two machines of three have a trial each; one of them is lost, and the other one does all that is left."""
    undisturbed, struck = start("undisturbed", **LONG), start("struck", **LONG)
    run_in_turn(undisturbed.pending(), heard)
    with cluster_of({"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as cluster:
        driver = _until(_begun(struck, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled"), struck, 1)
        lost, victim = _machine_at_work(cluster)
        cluster.remove_node(lost, allow_graceful=False)
        assert driver.wait() == 0
        assert not victim.is_running()
    assert trajectories(struck) == trajectories(undisturbed) and values(struck) == values(undisturbed)


def _machine_at_work(cluster):
    """One of the cluster's machines, and the process of the trial on it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for node in cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "TrialActor" in " ".join(process.cmdline()):  # Ray writes it there while a method runs
                        return node, process
    raise AssertionError("no machine has a trial")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trial_on_ray_train_is_the_plain_one(start, heard):
    """Each trial is a Ray Train run with a worker and a teacher of its own, to the last bit the plain run."""
    plain = start("plain", grid={})
    on_train = start("on_train", grid={}, settings={"ray": {"enabled": True, "num_workers": 1}})
    run_in_turn(plain.pending(), heard)
    assert _begun(on_train).wait() == 0
    assert trajectories(on_train) == trajectories(plain) and values(on_train) == values(plain)


class _Driver:
    """The command in a session of its own, so that all it started can be killed with it."""

    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(MAIN), *arguments], start_new_session=True, env={**os.environ, **environment}
        )

    def wait(self):
        return self.process.wait(timeout=900)

    def kill_all(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        for process in [self.process, *children]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_a_trial(self):
        deadline = time.monotonic() + 60  # between two trials there is none
        while time.monotonic() < deadline:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "TrialActor" in " ".join(process.cmdline()):
                        process.kill()
                        return
            time.sleep(0.02)
        raise AssertionError("no trial process")


def _begun(sweep, *options, **environment):
    return _Driver("--resume", str(sweep.directory), *options, **environment)


def _until(driver, sweep, num_ended):
    """Waits until so many trials have ended and another one has a checkpoint."""
    deadline = time.monotonic() + 900
    while len(sweep.outcomes()) < num_ended or not any(sweep.directory.glob("trials/*/checkpoints/*-*-*")):
        assert driver.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return driver
