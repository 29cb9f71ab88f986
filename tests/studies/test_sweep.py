"""Studies run to their end whatever is killed, and come to the same table as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2t_ray.reports.study import table
from l2t_ray.studies.outcome import run_trial
from l2t_ray.studies.results import collect
from l2t_ray.studies.sweep import run_in_turn
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


def test_a_study_in_turn_ends_in_a_table(start, heard):
    sweep = start()
    run_in_turn(sweep.pending(), heard)
    assert sweep.pending() == [] and len(heard.ended) == 4 and not heard.failed
    assert len(heard.rows) == 4 * 4
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
    from l2t_ray.studies.on_tune import run_on_tune

    grid = {"training.learning_rate": [1.0e30, 0.1]}
    in_turn, on_tune = start("in_turn", grid=grid), start("on_tune", grid=grid)
    run_in_turn(in_turn.pending(), heard)
    ended = dict(heard.ended)
    heard.ended, heard.rows = {}, []
    run_on_tune(on_tune.study, on_tune.pending(), heard, state=on_tune.directory / "tune")
    assert {name: outcome.kind for name, outcome in heard.ended.items()} == {n: o.kind for n, o in ended.items()}
    assert trajectories(on_tune) == trajectories(in_turn) and values(on_tune) == values(in_turn)
    assert not heard.failed


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "driver late", "trial"])
def test_a_killed_study_comes_to_the_same_table(start, heard, victim, tmp_path):
    changes = {"settings": {"training.num_rounds": 40, "training.num_steps": 10}}
    undisturbed, killed = start("undisturbed", **changes), start("killed", **changes)
    run_in_turn(undisturbed.pending(), heard)
    command = [sys.executable, str(MAIN), "--resume", str(killed.directory)]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    wanted = 2 if victim == "driver late" else 0
    deadline = time.monotonic() + 300
    while len(killed.outcomes()) < wanted or not any(killed.directory.glob("trials/*/checkpoints/*")):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if victim == "trial":
        os.kill(_trial_process(driver.pid), signal.SIGKILL)
        assert driver.wait(timeout=300) == 0
    else:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        finished = {name: (killed.directory / "trials" / name).stat().st_mtime_ns for name in killed.outcomes()}
        assert len(finished) < 4
        assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
        for name, changed in finished.items():  # kept, not done again
            assert (killed.directory / "trials" / name).stat().st_mtime_ns == changed
    assert trajectories(killed) == trajectories(undisturbed)
    assert values(killed) == values(undisturbed)
    assert (killed.directory / "table.md").read_text().splitlines()[2:] != []


def _trial_process(driver: int) -> int:
    import psutil

    for process in psutil.Process(driver).children(recursive=True):
        if "TrialActor" in " ".join(process.cmdline()):
            return process.pid
    raise AssertionError("no trial process")
