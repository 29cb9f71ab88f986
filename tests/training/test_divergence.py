"""A training that diverges ends with advice that fits the cause, in the names of whoever is asked."""

from collections.abc import Sequence

import pytest
import torch

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.interfaces import Batch, DivergenceError, MethodState, RoundBatches, StudentState
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.loop import Arm, Run, StepSizes


class Diverging:
    """A method whose round fails."""

    def __init__(self, error, at=0):
        self._error, self._at = error, at

    def init(self):
        return MethodState(StudentState(torch.zeros(2), torch.zeros(2), {}), {})

    def round(self, state, batches, index):
        if index == self._at:
            raise self._error
        return state, {}


class Images:
    num_classes = 2

    def __init__(self, inputs):
        self._inputs = inputs

    def round(self, index):
        batch = Batch(self._inputs, torch.zeros(2, dtype=torch.int64), torch.full((2,), 0.5), torch.arange(2))
        return RoundBatches([batch], batch)

    def epoch(self, index):
        return 0

    def validation(self, epoch) -> Sequence[Batch]:
        return []

    def test(self) -> Sequence[Batch]:
        return []


def said(error, *, at=0, inputs=None, teacher=None, **options):
    run = Run(
        arms=[Arm("method", Diverging(error, at), teacher)],
        student=FlatModule(torch.nn.Linear(2, 2)),
        task=Classification(),
        data=Images(torch.ones(2, 2) if inputs is None else inputs),
        group=SingleProcess(),
        num_rounds=3,
        num_steps=1,
        images_per_round=2,
        eval_every=9,
        checkpoint_every=9,
        **options,
    )
    with pytest.warns(UserWarning, match="diverged") as warned:
        checkpoint = run.train(start=None, store=None, on_row=lambda row: None)
    assert str(warned[0].message) == checkpoint.diverged["method"]
    return checkpoint.diverged["method"]


def test_steps_that_grew_ask_for_smaller_ones_in_the_callers_names():
    error = DivergenceError("the training loss is nan")
    assert said(error, at=1).endswith("in round 1: the training loss is nan; try a smaller training.learning_rate.")
    teacher = LocalTeacher(torch.zeros(1), AdamRule(1))
    text = said(error, at=1, teacher=teacher)
    assert text.endswith("try a smaller training.learning_rate or method.teacher.step_size.")
    text = said(
        error, at=1, teacher=LocalTeacher(torch.zeros(1), AdamRule(1)), step_sizes=StepSizes("learning_rate", None)
    )
    assert text.endswith("; try a smaller learning_rate.")


def test_another_cause_brings_its_own_advice():
    error = DivergenceError("the hypergradient is not finite", advice="add an epsilon")
    assert said(error, at=1).endswith("in round 1: the hypergradient is not finite; add an epsilon.")


def test_a_student_that_never_gave_a_finite_loss_is_no_matter_of_steps():
    error = DivergenceError("the training loss is nan", is_before_steps=True)
    assert "before the first step: look at the model's first weights" in said(error)
    assert said(error, at=2).endswith("try a smaller training.learning_rate.")


def test_inputs_that_are_not_finite_are_to_blame_before_all_else():
    inputs = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    text = said(DivergenceError("the training loss is nan", advice="add an epsilon"), inputs=inputs)
    assert text.endswith("inputs of that round are not finite themselves: mend them or leave them out.")
