"""Callbacks hear of each round of a `fit` and may end it; early stopping gives back the model that was best."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.assembly.callbacks import EarlyStopping
from l2t_ray.assembly.fit import fit
from l2t_ray.assembly.fit_rounds import screen_of
from l2t_ray.interfaces import UserError
from l2t_ray.tasks.classification import Classification

METRICS = Classification.metrics


def examples(num):
    labels = torch.arange(num) % 3
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(num)) + F.one_hot(labels, 4), labels


def fitted(callbacks=(), **arguments):
    sizes = {"num_rounds": 6, "num_steps": 1, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.3}
    torch.manual_seed(0)
    sets = {"train": examples(24), "validation": examples(12)}
    return fit(nn.Linear(4, 3), **sets, callbacks=callbacks, eval_every=1, try_first=False, **(sizes | arguments))


def plain(callbacks, **arguments):
    """Of a method that learns no loss: a fifth of the time."""
    return fitted(callbacks, method="cross_entropy", warm_share=None, **arguments)


def watched(values, **arguments):
    """What early stopping says of these accuracies, one a round."""
    stopping = EarlyStopping(**arguments)
    stopping.begin(METRICS)
    return [stopping(i, {"validation_accuracy": value}) for i, value in enumerate(values)], stopping


def test_callbacks_hear_the_number_and_the_metrics_of_each_round_in_their_order():
    heard = []
    result = plain([lambda i, m: heard.append((i, m["train_loss"])), lambda i, m: heard.append(i)])
    assert heard[1::2] == list(range(6)) and heard[::2] == [(r["round"], r["train_loss"]) for r in result.rows]
    assert result.stopped is None and result.num_rounds == 6


@pytest.fixture(scope="module")
def whole():
    return fitted()


def test_a_callback_that_returns_true_ends_the_training_and_keeps_what_there_is(whole):
    result = fitted([lambda i, metrics: np.True_ if i == 2 else None])
    assert result.stopped == "a callback returned True" and result.num_rounds == len(result.rows) == 3
    assert [row["val_error"] for row in result.rows] == [row["val_error"] for row in whole.rows[:3]]
    assert not torch.equal(result.model.weight, whole.model.weight)
    assert not torch.equal(result.loss.phi, whole.loss.phi) and result.noise is not None
    assert result.suspects()["score"].notna().sum() < whole.suspects()["score"].notna().sum()


def test_other_answers_are_none():
    assert plain([lambda i, m: 1, lambda i, m: "yes", lambda i, m: np.ones(2)]).num_rounds == 6


def test_it_waits_for_patience_evaluations_that_are_not_better():
    assert watched([0.1, 0.3, 0.3, 0.2], patience=2)[0] == [False, False, False, True]
    assert watched([0.1, 0.3, 0.2, 0.4, 0.2], patience=2)[0] == [False] * 5
    assert watched([0.1, 0.2, 0.3], patience=1, min_delta=0.15)[0] == [False, True, False]
    assert watched([None, None, 0.3, None, 0.2], patience=1)[0] == [False, False, False, False, True]
    assert watched([float("nan"), 0.1], patience=1)[1].best_round == 1


def test_a_metric_that_is_better_when_lower_is_watched_downwards():
    stopping = EarlyStopping(1, metric="validation_error")
    stopping.begin(METRICS)
    assert [stopping(i, {"validation_error": value}) for i, value in enumerate((2.0, 1.0, 1.5))] == [False, False, True]


def test_rows_of_before_are_heard_again():
    rows = [{"round": i, "validation_accuracy": value} for i, value in enumerate((0.5, 0.4))]
    stopping = EarlyStopping(2)
    assert not stopping.begin(METRICS, rows) and stopping.best_round == 0
    assert stopping(2, {"validation_accuracy": 0.4})
    assert EarlyStopping(1).begin(METRICS, rows)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_model_and_loss_are_those_of_the_best_evaluation_or_of_the_last(keep):
    """The metric is told what to be, so that round 1 is the best one."""
    told = {"validation_accuracy": iter((0.1, 0.9, 0.5, 0.5, 0.5, 0.5))}

    class Told(EarlyStopping):
        def __call__(self, round, metrics):
            return super().__call__(round, metrics | {"validation_accuracy": next(told["validation_accuracy"])})

    result = fitted([Told(2, keep=keep)])
    at = 2 if keep == "best" else 4
    assert result.num_rounds == at and len(result.rows) == 4
    if keep == "best":
        until = fitted([lambda i, metrics: i == at - 1])
        assert torch.equal(result.model.weight, until.model.weight) and torch.equal(result.loss.phi, until.loss.phi)
    assert result.stopped == "validation_accuracy was not better than in round 1 for 2 evaluations"


def test_the_best_model_is_given_back_where_all_rounds_are_done_too(caplog):
    stopping = EarlyStopping(100)
    result = fitted([stopping])
    assert "EarlyStopping watches the validation set, which is trained on as well" in caplog.text
    assert result.stopped is None and result.num_rounds == stopping.best_round + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"patience": 0}, "patience of EarlyStopping must be a whole number of at least 1, got 0"),
        ({"patience": 2.0}, "patience of EarlyStopping"),
        ({"min_delta": float("nan")}, "min_delta of EarlyStopping must be a finite number of at least 0, got nan"),
        ({"keep": "first"}, "keep of EarlyStopping must be 'best' or 'last', got 'first'"),
        ({"metric": 3}, "metric of EarlyStopping must be None or a column"),
        (
            {"metric": "val_acc"},
            "metric of EarlyStopping must be one of validation_accuracy, test_accuracy, .*got 'val_acc'",
        ),
    ],
)
def test_what_early_stopping_cannot_do_is_refused_before_anything_is_trained(arguments, sentence):
    heard = []
    with pytest.raises(UserError, match=sentence):
        fitted([lambda i, metrics: heard.append(i), EarlyStopping(**arguments)])
    assert heard == []


@pytest.mark.parametrize(("is_terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_on_a_terminal_unless_it_is_not_wanted(is_terminal, progress, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR" if is_terminal else "NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    plain([lambda i, metrics: i == 1], progress=progress)
    shown = capsys.readouterr()
    assert ("2/6" in shown.err) == (is_terminal and progress) and shown.out == ""


def test_the_bar_is_of_standard_error():
    assert screen_of(False)._console.stderr
