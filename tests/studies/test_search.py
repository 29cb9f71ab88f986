"""Optuna chooses the samples of a study, and a study that was killed chooses the same ones."""

import sys

import pytest
from test_sweep import on_tune_all, trajectories, values

from l2t_ray.interfaces import UserError
from l2t_ray.studies.command import main
from l2t_ray.studies.declaration import load_study
from l2t_ray.studies.outcome import Outcome, write_outcome
from l2t_ray.studies.search import Search, check_search
from l2t_ray.studies.sweep import Sweep, run_in_turn

OPTUNA = {
    "search": "optuna",
    "cases": {},
    "grid": {},
    "samples": 5,
    "distributions": {
        "training.learning_rate": {"log_uniform": [0.01, 1]},
        "training.decay": {"choice": ["constant", "cosine"]},
    },
}


@pytest.fixture(autouse=True)
def optuna():
    return pytest.importorskip("optuna", reason="Optuna is not installed (the extra `tune`)")


def pretend(sweep, listener, value, *, most=None):
    """A search whose trials take no time: they come to `value(config)`. Where they were trained, in order."""
    done = []
    search = Search(sweep, listener)
    for i, trial in enumerate(search.trials()):
        if i == most:
            break
        outcome = Outcome("finished", {"test_accuracy": value(trial.config)})
        search.on_end(trial, write_outcome(trial.directory, outcome))
        done.append(trial.directory.name)
    return done


def near_a_tenth(config):
    return 1 - abs(config.training.learning_rate - 0.1)


def test_it_goes_where_results_are_good(start, heard):
    sweep = start(**{**OPTUNA, "samples": 40})
    pretend(sweep, heard, near_a_tenth)
    first, last = sweep.samples[:10], sweep.samples[-10:]
    assert len(sweep.samples) == len(heard.ended) == 40
    distance = [
        sum(abs(sample["training.learning_rate"] - 0.1) for sample in part) / len(part) for part in (first, last)
    ]
    assert distance[1] < distance[0] / 2, distance
    assert {sample["training.decay"] for sample in sweep.samples} == {"constant", "cosine"}


def test_killed_on_the_way_it_chooses_the_same(start, heard):
    whole, killed = start("whole", **OPTUNA), start("killed", **OPTUNA)
    pretend(whole, heard, near_a_tenth)
    pretend(killed, heard, near_a_tenth, most=3)  # the fourth one was chosen, and did not end
    assert len(killed.samples) == 4 and len(killed.outcomes()) == 3
    again = Sweep.resume(killed.directory)
    done = pretend(again, heard, near_a_tenth)
    assert again.samples == whole.samples and len(again.outcomes()) == 5
    assert done == [trial.directory.name for trial in again.trials[3:]]  # and nothing is done again


def test_what_diverges_is_the_worst_there_is(start, heard):
    sweep = start(**OPTUNA)
    search = Search(sweep, heard)
    trial = search.next()
    search.on_end(trial, Outcome("diverged", {"test_accuracy": None, "diverged": True}))
    assert search._study.trials[0].value == 0.0


@pytest.mark.slow  # tests/studies/test_sweep.py has a study on Tune in the quick ones
@pytest.mark.ray
def test_on_tune_as_in_turn(start, heard):
    """With one trial at a time, the same samples to the last bit."""
    in_turn, on_tune = start("in_turn", **OPTUNA), start("on_tune", **OPTUNA)
    search = Search(in_turn, heard)
    run_in_turn(search.trials(), search)
    on_tune_all(on_tune, heard, at_once=1)
    assert not heard.failed and len(on_tune.samples) == 5 and on_tune.samples == in_turn.samples
    assert trajectories(on_tune) == trajectories(in_turn) and values(on_tune) == values(in_turn)


def test_from_the_command_line(write, tmp_path, capsys):
    main(None, ["--config", str(write(**{**OPTUNA, "samples": 2})), "--runs", str(tmp_path / "runs"), "--in-turn"])
    said = capsys.readouterr().out
    assert "2 of 2 trials to run" in said and "| 2: decay=" in said


def test_without_optuna_it_says_what_to_install(write, monkeypatch):
    study = load_study(write(**OPTUNA))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UserError, match=r"needs Optuna, which is not installed; pip install 'l2t_ray\[studies\]', or set"
    ):
        check_search(study)


def test_a_search_goes_by_one_seed(write):
    with pytest.raises(UserError, match=r"goes by one seed, and the study has 3; set seeds: 1\."):
        check_search(load_study(write(**{**OPTUNA, "seeds": 3})))
