"""All that `fit` trains, from the model and the sets that people bring; refused before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2t_ray.assembly.fit_settings import GivenLoss, first_loss
from l2t_ray.assembly.run import run_of
from l2t_ray.assembly.students import build_schedule
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.assembly.tensor_source import TensorSource
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.refusals import is_compiled
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.core.student import Trainee
from l2t_ray.data.tensor_examples import TensorSets
from l2t_ray.interfaces import Batch, RoundBatches, Task, Terms
from l2t_ray.methods.parts import LossFacts, Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.dry_round import dry_round, first_outputs, with_remedies
from l2t_ray.training.explain import Words, task_tried
from l2t_ray.training.loop import Run, StepSizes
from l2t_ray.training.remedies import EAGER, Remedy
from l2t_ray.training.user_module import copied, initialise_lazy, uncompiled

_LARGE_INPUT = 20.0


@dataclass
class FitParts:
    """What is trained, on what, and how.

    Attributes:
        student: a copy of the model, on the device.
        home: where the model is.
        loss: the learned loss at its beginning; None: the method learns none.
        notes: what the user is told of the model.
        autocast: see `FlatModule`.
        estimates: filled with what is found of the label noise.
    """

    config: ExperimentConfig
    student: nn.Module
    home: torch.device
    sets: TensorSets
    source: TensorSource
    task: Task | None
    loss: LossFamily | None
    words: Words
    notes: list[str]
    autocast: torch.dtype | None = None
    estimates: list[NoiseEstimate] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        sets: TensorSets,
        config: ExperimentConfig,
        *,
        task: Task | None,
        loss: GivenLoss,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> "FitParts":
        """
        Raises:
            UserError: if the model cannot be copied or evaluated, or does not fit the sets.
        """
        words = Words(
            batch_size=f"batch_size={config.training.batch_size}",
            val_batch_size=f"val_batch_size={config.training.val_batch_size}",
        )
        notes = [EAGER.note] if any(map(is_compiled, model.modules())) else []
        student = uncompiled(copied(model))
        home = next(student.parameters()).device
        student.to(device)
        shared = {"seed": config.seed, "device": device, "task": task}
        val = TensorSource(sets, config.training, num_classes=sets.num_classes, **shared).dry_round().val
        initialise_lazy(student, val.inputs, config.seed)
        outputs = first_outputs(student, val.inputs, words, are_logits=task is None)
        if sets.test is not sets.validation:
            extreme, _ = sets.test.batch(np.array(sets.test.extreme_rows), (), device)
            first_outputs(student, extreme, words._replace(validation="test"), are_logits=task is None)
        if task is None:
            num_classes = outputs.shape[1]
            sets.check_outputs(num_classes)
            notes += _notes(outputs, sets.num_classes)
        else:
            num_classes = _classes_of_rows(task, outputs, val)
        source = TensorSource(sets, config.training, num_classes=num_classes, **shared)

        def untrained() -> Parts:
            return _parts(config, FlatModule(copied(student), autocast=autocast), source, task)

        def sample() -> Sequence[Terms]:
            return untrained().term_sample()

        def class_counts() -> np.ndarray:
            return untrained().class_counts()

        facts = LossFacts(task or Classification(), num_classes, config.seed, sample, class_counts=class_counts)
        begun = first_loss(loss, config, facts, sets.num_classes)
        return cls(config, student, home, sets, source, task, begun, words, notes, autocast)

    def tried(self) -> list[Remedy]:
        """What it takes for a round to succeed; it is taken on a copy.

        Raises:
            UserError: if the model cannot be trained.
        """
        batches: RoundBatches = self.source.dry_round()

        def try_a_round() -> None:
            run = self._run(copied(self.student), [])
            dry_round(run.arms[0].method, run.student, run.task, run.group, batches, self.words)
            copied(run.student.module)

        return with_remedies(try_a_round, self.source.device)

    def run(self) -> Run:
        """Everything that is trained, at its beginning."""
        return self._run(self.student, self.estimates)

    def _run(self, student: nn.Module, estimates: list[NoiseEstimate]) -> Run:
        parts = _parts(self.config, FlatModule(student, autocast=self.autocast), self.source, self.task)
        parts = replace(parts, loss=self.loss, on_estimate=estimates.append)
        return replace(
            run_of(self.config, parts, build_teacher),
            tests_on_validation=self.sets.test is self.sets.validation,
            step_sizes=StepSizes("learning_rate", None),
            other_advice=_about_inputs(self.sets.train.largest),
        )


def _parts(config: ExperimentConfig, student: FlatModule, source: TensorSource, task: Task | None) -> Parts:
    trainee = Trainee(
        student, task or Classification(), build_schedule(config.training), SingleProcess(), source.device
    )
    return Parts(trainee, source, config.training.num_rounds, config.seed)


def _classes_of_rows(task: Task, outputs: Any, batch: Batch) -> int:
    """How many classes a task's rows decide between; 1: it has none."""
    with torch.no_grad(), task_tried(task):
        rows = task.terms(outputs, batch).rows
    return 1 if rows is None else rows.logits.shape[1]


def _notes(outputs: Tensor, num_labels: int) -> list[str]:
    """What is odd about a model's first outputs, but may be meant."""
    notes = []
    if outputs.shape[1] > num_labels:
        notes.append(
            f"gives {outputs.shape[1]} outputs for {num_labels} classes; the others are outputs without examples"
        )
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(dim=1), outputs.new_ones(()), atol=1e-3):
        notes.append("seems to give probabilities where logits are expected; leave its softmax out")
    return notes


def _about_inputs(largest: float) -> str:
    return "" if largest <= _LARGE_INPUT else f", or scale the inputs, which reach {largest:g}"
