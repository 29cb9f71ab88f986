"""What the trained students of a run say: of all test images in numbers, of the first ones to be looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from l2t_ray.assembly.sources import AnySource
from l2t_ray.core.student import Trainee
from l2t_ray.data.augment import pixels_of
from l2t_ray.interfaces import Batch, Rows, StudentState
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.shown import Chart, ClassMatrix, Marks, ShowsAnswers, first
from l2t_ray.training.evaluate import scored

SHOWN = 6
"""Test images that each student's answers are shown of."""


class Predictions(NamedTuple):
    """What a student says of each test image, in order: a class, and how probable it holds that to be."""

    classes: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Inspection:
    """What a trained student says.

    Attributes:
        charts: of all test images.
        memorised: the share of wrong training labels that it predicts; None where none is known to be wrong.
        answers: to the first test images, where the task has something to show.
        predicted: of all test images, where there is one class decision an image.
    """

    charts: Sequence[Chart]
    memorised: float | None = None
    answers: Sequence[Marks] = ()
    predicted: Predictions | None = None

    @property
    def confusion(self) -> Int[np.ndarray, "c c"] | None:
        return next((chart.counts for chart in self.charts if isinstance(chart, ClassMatrix)), None)


@dataclass(frozen=True)
class Inspected:
    """The students by arm, and what they were shown: the first test images as they see them, and what is marked."""

    students: Mapping[str, Inspection] = field(default_factory=dict)
    images: Sequence[UInt8[np.ndarray, "c h w"]] = ()
    truths: Sequence[Marks] = ()


def inspect_students(trainee: Trainee, source: AnySource, students: Mapping[str, StudentState]) -> Inspected:
    """Evaluates each trained student once on the test images, as its metrics are; classifiers on training images with
    wrong labels too."""
    device = source.device
    on_device = {
        arm: state._replace(
            theta=state.theta.to(device), buffers={name: buffer.to(device) for name, buffer in state.buffers.items()}
        )
        for arm, state in students.items()
    }
    if not isinstance(trainee.task, ShowsAnswers):
        return Inspected({arm: _of_decisions(trainee, source, state) for arm, state in on_device.items()})
    images, truths = _first_examples(source, trainee.task)
    answered = {arm: _answering(trainee, trainee.task, source, state) for arm, state in on_device.items()}
    return Inspected(answered, images, truths)


def _first_examples(source: AnySource, task: ShowsAnswers) -> tuple[list[np.ndarray], list[Marks]]:
    """No images where inputs are none."""
    images, truths = [], []
    for batch in source.plain().test():
        some = Batch(*(first(part, SHOWN - len(truths)) for part in batch))
        truths += task.truths(some)
        if isinstance(some.inputs, Tensor) and some.inputs.ndim == 4:
            images += [*pixels_of(some.inputs, source.dataset.mean, source.dataset.std).cpu().numpy()]
        if len(truths) == SHOWN:
            break
    return images, truths


def _answering(trainee: Trainee, task: ShowsAnswers, source: AnySource, state: StudentState) -> Inspection:
    answers: list[Marks] = []

    def look(batch: Batch, outputs: object) -> None:
        if (missing := SHOWN - len(answers)) > 0:
            answers.extend(task.answers(first(outputs, missing), Batch(*(first(part, missing) for part in batch))))

    totals = scored(trainee.student, state, trainee.task, source.plain().test(), SingleProcess(), look=look)
    return Inspection(task.charts(totals), answers=answers)


@torch.no_grad()
def _of_decisions(trainee: Trainee, source: AnySource, state: StudentState) -> Inspection:
    """Nothing, where a task decides nothing between classes."""
    data, corrupted = source.plain(), source.corrupted
    if getattr(trainee.task, "scores_are_rows", False):
        return Inspection([])  # what is ranked has no confusion matrix

    def rows_of(batch: Batch) -> Rows | None:
        return trainee.task.terms(trainee.outputs(state.theta, state.buffers, batch, training=False), batch).rows

    confusion = np.zeros((data.num_classes, data.num_classes), dtype=np.int64)
    classes, probabilities = [], []
    for batch in data.test():
        if (rows := rows_of(batch)) is None:
            return Inspection([])
        classes.append(rows.logits.argmax(dim=1).cpu().numpy())
        probabilities.append(rows.logits.double().softmax(dim=1).amax(dim=1).cpu().numpy())
        np.add.at(confusion, (rows.labels.cpu().numpy(), classes[-1]), 1)
    memorised = None
    if corrupted is not None:
        wrong = [rows_of(batch) for batch in source.images(corrupted.rows[corrupted.is_wrong])]
        is_said = torch.cat([rows.logits.argmax(dim=1) == rows.labels for rows in wrong if rows is not None])
        memorised = is_said.double().mean().item()
    predicted = Predictions(np.concatenate(classes), np.concatenate(probabilities))
    return Inspection([ClassMatrix(confusion)], memorised, predicted=predicted if trainee.task.row_is_example else None)
