"""What a method is built from: the student, the data of the run, and the facts that all arms share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.core.student import Trainee
from l2t_ray.data.splits import Split
from l2t_ray.interfaces import Batch, Data, Group, Task, Teacher, Terms, UserError

SAMPLED = 64
"""Training examples that say how much of the push each of a task's loss terms has."""


class Labels(NamedTuple):
    """Labels of the images that are not test images, by row of the training set (`Batch.indices`)."""

    observed: Int[np.ndarray, " images"]
    """What an image is labelled in the training part: noisy, where labels are."""
    validation: Int[np.ndarray, " images"]
    """What it is labelled in the validation part."""
    is_validation: Bool[np.ndarray, " images"]
    """Whether it is in the validation part (of the first epoch, where it changes)."""
    noise: Float[np.ndarray, "c c"] | None
    """The true noise matrix: row the class, column the label. For oracles, since nobody knows it; None: not even who
    brought the labels."""
    class_names: tuple[str, ...]
    true: Int[np.ndarray, " images"] | None = None
    """What it was labelled before noise, for reference lines; None: nobody knows."""


@runtime_checkable
class Source(Protocol):
    """The data of a run, on one worker. Batches come in several ways, all of the same images."""

    def labels(self) -> Labels: ...
    def plain(self) -> Data:
        """The training part is trained on, the validation part is validated on."""
        ...

    def truly_labelled(self) -> Data:
        """As `plain`, with the labels as they were before noise.

        Raises:
            UserError: if nobody knows them.
        """
        ...

    def mixed(self) -> Data:
        """The validation part is trained on as well, with its own labels."""
        ...

    def validation_alone(self) -> Data:
        """The validation part is all that is trained on."""
        ...

    def in_folds(self, num_folds: int) -> Data:
        """One fold of the validation part is validated on, the others are trained on as well; they take turns."""
        ...

    def most_folds(self) -> int:
        """Into how many folds the validation part can be divided if each is to fill a validation minibatch."""
        ...

    def split(self, epoch: int) -> Split:
        """Which rows are trained on and validated on in an epoch."""
        ...

    def images(self, rows: Int[np.ndarray, " n"]) -> Iterable[Batch]:
        """These images of the training set, unaugmented, in order; the same on each worker, not a share."""
        ...


def _nobody_knows_the_labels() -> Int[np.ndarray, " c"]:
    raise UserError("class shares are counted from the training labels, and here are none.")


@dataclass(frozen=True)
class LossFacts:
    """What a learned loss is made for.

    Attributes:
        seed: of the run.
        sample: gives what the task makes of some training examples, of a student at its beginning: the same on every
            worker. It is computed when it is asked for.
        class_counts: gives how many of the training labels each class has (`Parts.class_counts`).
        given: the loss that is there already, whatever the settings say; None: as they say.
    """

    task: Task
    num_classes: int
    seed: int
    sample: Callable[[], Sequence[Terms]] = tuple
    given: LossFamily | None = None
    class_counts: Callable[[], Int[np.ndarray, " c"]] = _nobody_knows_the_labels


@dataclass(frozen=True)
class Parts:
    """What a method is built from, on one worker.

    Attributes:
        num_rounds: of the whole training.
        seed: of the run; `data.counted.torch_seed(seed, "purpose")` gives a seed for each purpose.
        teacher: what rewrites the loss; None where the method has none (`MethodSettings.has_teacher`).
        loss: the learned loss as it is at first, whatever the settings say; None: as they say.
        on_estimate: hears each estimate of the label noise, on the worker that makes it.
        sample: gives `term_sample`, computed once for all arms; None: it is computed anew.
    """

    trainee: Trainee
    source: Source
    num_rounds: int
    seed: int
    teacher: Teacher | None = None
    loss: LossFamily | None = None
    on_estimate: Callable[[NoiseEstimate], None] = lambda estimate: None
    sample: Callable[[], Sequence[Terms]] | None = None

    @property
    def group(self) -> Group:
        return self.trainee.group

    @property
    def device(self) -> torch.device:
        return torch.device(self.trainee.device)

    @property
    def labels(self) -> Labels:
        return self.source.labels()

    @property
    def num_images(self) -> int:
        return len(self.labels.observed)

    @property
    def num_classes(self) -> int:
        return len(self.labels.class_names)

    @property
    def is_clean(self) -> Bool[Tensor, " images"]:
        """By image of the training set, whether its label is to be trusted: it is a validation image."""
        return torch.from_numpy(self.labels.is_validation).to(self.device)

    @property
    def loss_facts(self) -> LossFacts:
        return LossFacts(
            self.trainee.task,
            self.num_classes,
            self.seed,
            self.sample or self.term_sample,
            self.loss,
            self.class_counts,
        )

    @torch.no_grad()
    def term_sample(self) -> list[Terms]:
        """What the task makes of the first `SAMPLED` training examples, of the student at its beginning."""
        student, sample = self.trainee.initial(), []
        rows = np.flatnonzero(~self.labels.is_validation)[:SAMPLED]
        for batch in self.source.images(rows):
            num_rows = max(1, int(self.trainee.task.num_rows(batch.targets).sum()))
            weights = torch.full_like(batch.weights, 1 / num_rows)
            sample.append(self.trainee.seen_terms(student, batch._replace(weights=weights)))
        return sample

    def class_counts(self, *, with_validation: bool = False) -> Int[np.ndarray, " c"]:
        """How many images of the training part (of the first epoch, where it changes) are labelled with each class.

        Args:
            with_validation: those of the validation part are trained on as well, with their own labels.

        Raises:
            UserError: if fewer than two classes have any.
        """
        split, labels = self.source.split(0), self.labels
        given = labels.observed[split.train]
        if with_validation:
            given = np.concatenate((given, labels.validation[split.validation]))
        counts = np.bincount(given, minlength=self.num_classes)
        if np.count_nonzero(counts) < 2:
            raise UserError(
                "class shares are counted from the training labels, and these are of one class alone, or no class "
                "numbers; take a method or loss that does not count them, such as method=cross_entropy."
            )
        return counts

    @torch.no_grad()
    def num_features(self) -> int:
        """Length of the features that the student gives with its logits.

        Raises:
            UserError: if it gives something else.
        """
        initial = self.trainee.initial()
        first = next(iter(self.source.images(np.arange(1))))
        return self.trainee.features(initial, first).shape[1]


def check_rows_are_examples(parts: Parts, what: str, instead: str) -> None:
    """
    Raises:
        UserError: if a row of the task is less than an example: a pixel, a box, a word.
    """
    task = parts.trainee.task
    if not task.row_is_example:
        raise UserError(
            f"{what} goes by whole images, and rows of {task.name} are parts of them; set {instead}, or name another "
            "method."
        )


def check_gives_embedding(parts: Parts, what: str, instead: str) -> None:
    """
    Raises:
        UserError: if the student cannot be asked for what its last layer reads.
    """
    if not parts.trainee.gives_embedding:
        raise UserError(
            f"{what} reads what a student's last layer reads, and this student's forward() has no argument "
            f"with_embedding; give it one, as students/resnet.py has, or set {instead}."
        )
