"""Nothing that a `fit` has done is lost: it is given back when it is interrupted, and gone on with by the same call."""

import logging
import shutil
import signal
from functools import partial
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from l2t_ray.assembly.callbacks import EarlyStopping
from l2t_ray.assembly.fit import fit
from l2t_ray.interfaces import DivergenceError, UserError
from l2t_ray.training import place, rows_file

TIMES = ("seconds", "ended_at", "images_per_second")
ROUNDS = 6


def examples(num):
    labels = torch.arange(num) % 3
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(num)) + F.one_hot(labels, 4), labels


TRAIN, VALIDATION = examples(24), examples(12)


class Jittered(TensorDataset):
    def __getitem__(self, row):
        inputs, label = super().__getitem__(row)
        return inputs + 0.1 * torch.randn(4), label


def model(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(dropout), nn.Linear(5, 3))


def fitted(own=None, callbacks=(), **arguments):
    """Random transforms, dropout, batch norm, Adam, an estimate of the noise, folds and a memory."""
    sizes = {"num_rounds": ROUNDS, "num_steps": 1, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.3}
    settings = {"optimizer": "adam", "learning_rate": 0.03, "eval_every": 1, "try_first": False, "checkpoint_every": 2}
    return fit(
        own or model(),
        **({"train": Jittered(*TRAIN), "validation": VALIDATION} | sizes | settings | arguments),
        callbacks=callbacks,
    )


def interrupt(at, index, metrics):
    """Ctrl-C after a round."""
    if index == at:
        raise KeyboardInterrupt


def what_is_left(result):
    """All but the times."""
    rows = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in result.rows]
    tensors = [*result.model.state_dict().values(), result.loss.phi]
    noise = None if result.noise is None else [part.tolist() for part in result.noise]
    suspects = result.suspects().fillna(-1).to_dict("list")
    return rows, [tensor.tolist() for tensor in tensors], noise, suspects, result.num_rounds


@pytest.fixture(scope="module")
def whole():
    return fitted()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(place, "PATIENCE_S", 0.0)


class Interrupted(nn.Linear):
    """Ctrl-C comes in the middle of a pass, once round 2 is done."""

    heard: ClassVar[list[int]] = []

    def forward(self, x):
        if self.training and self.heard[-1:] == [2]:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


def test_ctrl_c_gives_back_the_latest_whole_round(caplog):
    own, heard = Interrupted(4, 3), Interrupted.heard
    before = own.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        result = fitted(own, [lambda i, metrics: heard.append(i)])
    assert result.stopped == "Ctrl-C" and result.num_rounds == len(result.rows) == 3
    assert "stopped by Ctrl-C: this is the model after round 3 of 6" in caplog.text
    assert torch.equal(own.weight, before) and own.training and "weight" in own._parameters
    heard.clear()
    assert what_is_left(fitted(own, [lambda i, metrics: i == 2])) == what_is_left(result)


def test_ctrl_c_before_the_first_round_interrupts():
    class Impatient(TensorDataset):
        def __getitem__(self, row):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(train=Impatient(*TRAIN))


def test_what_ends_the_training_brings_what_there_was():
    def fail(index, metrics):
        if index == 2:
            raise ZeroDivisionError("a callback's own")

    with pytest.raises(ZeroDivisionError, match="a callback's own") as failure:
        fitted(callbacks=[fail])
    partial_fit = failure.value.partial
    assert partial_fit.num_rounds == len(partial_fit.rows) == 3 and partial_fit.stopped == "ZeroDivisionError"
    assert "The 3 rounds before are this exception's `partial`, a Fit." in failure.value.__notes__
    assert partial_fit.predict(VALIDATION[0]).shape == (12,)


def test_a_divergence_brings_the_rounds_before_it():
    def poison(index, metrics):
        if index == 1:
            data.tensors[0].fill_(float("nan"))

    data = TensorDataset(TRAIN[0].clone(), TRAIN[1])
    with pytest.raises(DivergenceError) as failure:
        fitted(train=data, callbacks=[poison])
    assert failure.value.partial.num_rounds == 2
    assert all(tensor.isfinite().all() for tensor in failure.value.partial.model.parameters())


def test_the_same_call_goes_on_after_ctrl_c_bit_for_bit(whole, tmp_path):
    at = 3
    first = fitted(callbacks=[partial(interrupt, at)], checkpoint=tmp_path / "new" / "one")
    assert first.num_rounds == at + 1
    heard = []
    second = fitted(callbacks=[lambda i, metrics: heard.append(i)], checkpoint=str(tmp_path / "new" / "one"))
    assert heard == list(range(at + 1, ROUNDS)) and second.stopped is None
    assert what_is_left(second) == what_is_left(whole)


def test_a_run_that_was_killed_goes_on_from_its_newest_checkpoint(whole, tmp_path):
    def copied(index, metrics):
        if index == 4:
            shutil.copytree(tmp_path / "one", tmp_path / "killed")

    fitted(callbacks=[copied], checkpoint=tmp_path / "one")
    heard = []
    again = fitted(callbacks=[lambda i, metrics: heard.append(i)], checkpoint=tmp_path / "killed")
    assert heard == [4, 5] and what_is_left(again) == what_is_left(whole)
    done = fitted(callbacks=[lambda i, metrics: 1 / 0], checkpoint=tmp_path / "killed")
    assert what_is_left(done) == what_is_left(whole)


def test_ctrl_c_while_a_checkpoint_is_written_loses_nothing(whole, tmp_path, monkeypatch):
    """The first try to write is broken off between the rows and the mark of where they end."""
    mark = rows_file.Mark

    def broken_off(*_):
        monkeypatch.setattr(rows_file, "Mark", mark)
        raise KeyboardInterrupt

    def break_off(index, metrics):
        if index == 3:
            monkeypatch.setattr(rows_file, "Mark", broken_off)

    first = fitted(callbacks=[break_off], checkpoint=tmp_path / "one")
    assert first.stopped == "Ctrl-C" and first.num_rounds == 4
    heard = []
    again = fitted(callbacks=[lambda i, metrics: heard.append(i)], checkpoint=tmp_path / "one")
    assert heard == [4, 5] and what_is_left(again) == what_is_left(whole)


def test_early_stopping_goes_on_with_the_best_model_that_it_had(tmp_path):
    def stopping():
        values = dict(enumerate((0.1, 0.9, 0.5, 0.4, 0.3)))

        class Told(EarlyStopping):
            def __call__(self, round, metrics):
                return super().__call__(round, metrics | {"validation_accuracy": values[round]})

        return Told(3)

    undisturbed = fitted(callbacks=[stopping()])
    fitted(callbacks=[stopping(), partial(interrupt, 3)], checkpoint=tmp_path / "one")
    again = fitted(callbacks=[stopping()], checkpoint=tmp_path / "one")
    assert again.num_rounds == 2 and again.stopped == undisturbed.stopped
    assert what_is_left(again) == what_is_left(undisturbed)
    once_more = fitted(callbacks=[stopping(), lambda i, metrics: 1 / 0], checkpoint=tmp_path / "one")
    assert once_more.stopped == undisturbed.stopped and once_more.num_rounds == 2
    without = fitted(callbacks=[lambda i, metrics: True], checkpoint=tmp_path / "one")
    assert without.num_rounds == ROUNDS


OTHER_CALLS = {
    "seed is 0 there and 1 here": {"seed": 1},
    "training.learning_rate is 0.03 there and 0.1 here": {"learning_rate": 0.1},
    "training.num_rounds is 6 there and 7 here": {"num_rounds": 7},
    "method.*is": {"method": "l2t_dln"},
    "the training examples are others": {"train": (TRAIN[0] + 1, TRAIN[1])},
    "the validation examples are others": {"validation": (VALIDATION[0], VALIDATION[1].flip(0))},
    "the test examples are others": {"test": TRAIN},
    "the model's layers are others": {"own": model(dropout=0.3)},
    r"the model's weights at the beginning are others.*model.load_state_dict\(torch.load\(": {"own": model(1)},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    directory = tmp_path_factory.mktemp("begun") / "one"
    fitted(callbacks=[partial(interrupt, 1)], checkpoint=directory)
    return directory


@pytest.mark.parametrize("problem", OTHER_CALLS)
def test_what_another_call_has_computed_is_refused(problem, begun):
    heard = []
    with pytest.raises(UserError, match=f"holds what another call has computed: .*{problem}"):
        fitted(callbacks=[lambda i, metrics: heard.append(i)], checkpoint=begun, **OTHER_CALLS[problem])
    assert heard == []


def test_the_first_weights_are_there_for_a_model_that_was_not_seeded(begun, whole, tmp_path):
    shutil.copytree(begun, tmp_path / "one")
    own = model(1)
    own.load_state_dict(torch.load(tmp_path / "one" / "first_weights.pt"))
    assert what_is_left(fitted(own, checkpoint=tmp_path / "one")) == what_is_left(whole)


def test_a_directory_belongs_to_one_fit_at_a_time(begun):
    failures = []

    def second(index, metrics):
        try:
            fitted(checkpoint=begun)
        except UserError as error:
            failures.append(str(error))
        raise KeyboardInterrupt

    fitted(callbacks=[second], checkpoint=begun)
    assert "is in use by process" in failures[0] and "set another checkpoint=" in failures[0]


def test_what_is_refused_before_the_first_round_leaves_no_directory(tmp_path):
    with pytest.raises(UserError, match="metric of EarlyStopping"):
        fitted(callbacks=[EarlyStopping(metric="nothing")], checkpoint=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_given_back_though_it_cannot_be_written(tmp_path, caplog):
    def full(index, metrics):
        if index == 1:
            shutil.rmtree(tmp_path / "one")
            (tmp_path / "one").write_text("in the way")
            raise KeyboardInterrupt

    result = fitted(callbacks=[full], checkpoint=tmp_path / "one", checkpoint_every=5)
    assert result.num_rounds == 2 and "cannot write the checkpoint" in caplog.text
