"""Losses that somebody brought are families, or one sentence says what they lack."""

import pytest
import torch

from l2t_ray.core.loss.brought import TAKEN, TAKEN_BEGINNINGS, checked_family, fixed_of, losses_of, report_of
from l2t_ray.core.loss.family import RowLosses
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Terms, UserError
from l2t_ray.own_code import own_code
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.metrics import COLUMNS

TERMS, ROWS = Terms(torch.zeros(3, 2)), torch.arange(3)


class Family:
    reads_memory = False

    def __init__(self, phi=None, **numbers):
        self.phi = torch.zeros(1) if phi is None else phi
        self.numbers = numbers

    def losses(self, phi, terms, memory):
        return RowLosses(phi * terms.outputs.sum(dim=1), torch.ones(3), ROWS)

    def fixed(self, terms):
        return terms.outputs.sum(dim=1)

    def report(self, phi):
        return self.numbers


class Gives(Family):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def losses(self, phi, terms, memory):
        return self.result

    report = fixed = lambda self, given: self.result


class Raises(Family):
    def losses(self, *given):
        raise KeyError("two\nlines")

    report = fixed = losses


def test_a_family_is_taken_as_it_is():
    family = Family(strength=1)
    assert checked_family(family, "loss") is family
    assert losses_of(family, family.phi, TERMS, None).values.tolist() == [0, 0, 0]
    assert report_of(family, family.phi) == {"strength": 1}


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (None, "loss 'a:B' is of type NoneType and lacks phi, reads_memory, losses, fixed, report; give it"),
        (type("Half", (), {"phi": 1, "reads_memory": False}), "is of type type and lacks losses, fixed, report"),
        (Family(phi=3), "phi of loss 'a:B' must be a tensor, the weights that it begins with, got int"),
        (Family(torch.zeros(())), "must be a row of one number or more in torch.float32, got [] in torch.float32"),
        (Family(torch.zeros(0)), "got [0] in torch.float32"),
        (PairLoss(DynamicLossNetwork(hidden=3, layers=2).double()), "in torch.float64"),
        (Family(torch.zeros(1, 1)), "got [1, 1] in torch.float32"),
        (Family(torch.zeros(1, dtype=torch.float64)), "got [1] in torch.float64"),
        (Family(torch.tensor([1, 2])), "got [2] in torch.int64"),
        (Family(torch.tensor([1, float("nan")])), "has 1 numbers that are not finite"),
    ],
)
def test_what_is_no_family_is_refused(family, sentence):
    with pytest.raises(UserError) as refused:
        checked_family(family, "loss 'a:B'")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (torch.zeros(3), "must give RowLosses(values, weights, owner), got Tensor"),
        (RowLosses(torch.zeros(6), torch.ones(3), ROWS), "got values [6], weights [3], owner [3]"),
        (RowLosses(torch.zeros(3, 1), torch.ones(3, 1), ROWS), "got values [3, 1], weights [3, 1], owner [3]"),
        (RowLosses(torch.zeros(()), torch.ones(()), torch.zeros(())), "of shape [n], one a row, got values []"),
        (RowLosses(1.0, 1.0, 1.0), "got values float, weights float, owner float"),  # pyright: ignore
    ],
)
def test_losses_that_are_not_one_a_row_are_refused(rows, sentence):
    with pytest.raises(UserError) as refused:
        losses_of(Gives(rows), torch.zeros(1), TERMS, None)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (None, "must give numbers by name, got NoneType"),
        ({1: 1.0}, "must give numbers by name"),
        ({"a": "many"}, "must give finite numbers, got str 'many' for 'a'"),
        ({"a": torch.zeros(1)}, "got Tensor"),
        ({"a": True}, "got bool True for 'a'"),
        ({"a": float("inf")}, "got float inf for 'a'"),
        ({"val_error": 1.0}, "gives 'val_error', which is another number of a round"),
        ({"test_miou": 1.0}, "gives 'test_miou'"),
    ],
)
def test_reports_that_are_no_numbers_of_their_own_are_refused(report, sentence):
    with pytest.raises(UserError) as refused:
        report_of(Gives(report), torch.zeros(1))
    assert sentence in str(refused.value)


def test_a_family_of_other_terms_than_the_tasks_is_refused():
    family = TermLoss({"l_box": ["all"]})
    assert checked_family(family, "loss") is family
    with pytest.raises(
        UserError, match=r"loss combines the terms l_box .*, and the classification task gives no terms; give one"
    ):
        checked_family(family, "loss", Classification())


def test_every_column_of_a_round_is_taken_but_the_one_that_a_loss_gives():
    free = {c.name for c in COLUMNS if c.name not in TAKEN and not c.name.startswith(TAKEN_BEGINNINGS)}
    assert free == {"memory_weight"}


def test_what_somebodys_own_family_raises_is_one_sentence_with_its_line():
    calls = [
        lambda: losses_of(Raises(), torch.zeros(1), TERMS, None),
        lambda: report_of(Raises(), torch.zeros(1)),
        lambda: fixed_of(Raises(), TERMS),
    ]
    for call in calls:
        with pytest.raises(UserError) as refused:
            call()
        text = str(refused.value)
        assert "of loss Raises raises KeyError: 'two\\nlines' (test_brought.py, line " in text and "\n" not in text
        assert isinstance(refused.value.__cause__, KeyError)


def test_a_fault_of_this_package_stays_one():
    with pytest.raises(ZeroDivisionError), own_code("loss", PairLoss):
        raise ZeroDivisionError
