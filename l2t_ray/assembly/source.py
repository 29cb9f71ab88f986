"""The minibatches of a run, in the ways that its methods ask for them, put together once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from l2t_ray.assembly.images import build_policy, observed_labels, refuse_other_sections
from l2t_ray.data import noise, splits
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.examples import Examples
from l2t_ray.data.labelled_images import LabelledImages
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.row_shares import RowShares
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split
from l2t_ray.import_path import is_import_path
from l2t_ray.interfaces import Batch, Data, Group, RoundBatches, Task, UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.settings.experiment import ExperimentConfig, TrainingConfig


@dataclass(frozen=True)
class CorruptedLabels:
    """The training images whose labels are wrong, and what the noise is in numbers."""

    rows: Int[np.ndarray, " n"]
    """The training part (of the first epoch, where it changes)."""
    is_wrong: Bool[np.ndarray, " n"]
    matrix: Float[np.ndarray, "c c"]
    """As drawn from; as it shows, where labels were brought as a file."""
    realised: Float[np.ndarray, "c c"]

    @property
    def rate(self) -> float:
        return float(self.is_wrong.mean())


class ExamplesSource:
    """The data of a run on one worker (see `methods.parts.Source`). What is the same for all arms is made once.

    Args:
        examples: the training set's examples, with the labels that they are given.
        test: what is tested on.
        labels: of the training set.
        policy: which rows are trained on and validated on.
        training: how many steps and examples a round has.
        balance: by row of the training set, classes by which folds of the validation part are balanced.
        seed: of orders and of what is drawn for the examples.
        test_batch: examples in a batch of an evaluation.
        task: says how many rows of each example count; None: one.

    Attributes:
        teaches_validation: some method has asked for batches in which the validation part is trained on.

    Raises:
        UserError: if a minibatch is larger than its part, or too small for the workers.
    """

    def __init__(
        self,
        examples: Callable[[Int[np.ndarray, " n"]], Examples],
        test: Examples,
        labels: Labels,
        policy: Policy,
        training: TrainingConfig,
        *,
        balance: Int[np.ndarray, " n"],
        seed: int,
        group: Group,
        device: torch.device,
        at_pass_end: Literal["wrap", "lose_step"] = "wrap",
        augment_validation: bool = False,
        test_batch: int = 1_000,
        task: Task | None = None,
    ):
        self.device, self._task = device, task
        self._examples, self._test, self._labels = examples, test, labels
        self._policy, self._training = policy, training
        self._balance, self._seed, self._group = balance, seed, group
        self._at_pass_end: Literal["wrap", "lose_step"] = at_pass_end
        self._augment_validation, self._test_batch = augment_validation, test_batch
        self.teaches_validation = False

    def labels(self) -> Labels:
        return self._labels

    def split(self, epoch: int) -> Split:
        return self._policy.at(epoch)

    def images(self, rows: Int[np.ndarray, " n"]) -> list[Batch]:
        return self._plain.training_images(rows)

    def dry_round(self) -> RoundBatches:
        """Two steps and a validation minibatch to try things on (`RoundLoader.dry_round`)."""
        return self._plain.dry_round()

    def plain(self) -> Data:
        return self.served(self._plain)

    def served(self, loader: RoundLoader) -> Data:
        """The minibatches as methods get them: each example has the share of one of its rows (`Batch.weights`)."""
        return loader if self._task is None else RowShares(loader, self._task, self._group)

    @cached_property
    def _plain(self) -> RoundLoader:
        return self._loader(self._policy, self._labels.observed)

    def truly_labelled(self) -> Data:
        """
        Raises:
            UserError: if nobody knows the labels without noise.
        """
        if self._labels.true is None:
            raise UserError(
                "method true_labels trains on the labels without their noise, and nobody knows those of this data set; "
                "leave it out, or take a set with one known label an image."
            )
        return self.served(self._loader(self._policy, self._labels.true))

    def mixed(self) -> Data:
        return self._with_validation(splits.mixed(self._policy))

    def validation_alone(self) -> Data:
        return self._with_validation(splits.validation_alone(self._policy))

    def in_folds(self, num_folds: int) -> Data:
        """
        Raises:
            UserError: if a fold is too small for a validation minibatch.
        """
        lasts = fold_epochs(num_folds, self._training, self.split(0))
        return self._with_validation(splits.in_folds(self._policy, self._balance, self._seed, num_folds, lasts))

    def most_folds(self) -> int:
        """Into how many folds the validation part can be divided if each is to fill a validation minibatch."""
        return len(self.split(0).validation) // self._training.val_batch_size

    def _with_validation(self, policy: Policy) -> Data:
        """Batches where validation images may be trained on: these keep their validation labels."""
        self.teaches_validation, labels = True, self._labels
        taught = np.where(labels.is_validation, labels.validation, labels.observed)
        return self.served(self._loader(policy, taught))

    def _loader(self, policy: Policy, taught: Int[np.ndarray, " images"]) -> RoundLoader:
        training = self._training
        sampler = RoundSampler(
            policy,
            seed=self._seed,
            num_steps=training.num_steps,
            train_batch=training.batch_size,
            val_batch=training.val_batch_size,
            at_pass_end=self._at_pass_end,
        )
        return RoundLoader(
            self._examples(taught),
            self._examples(self._labels.validation),
            self._test,
            sampler,
            seed=self._seed,
            num_classes=len(self._labels.class_names),
            rank=self._group.rank,
            world_size=self._group.size,
            device=self.device,
            augment_validation=self._augment_validation,
            test_batch=self._test_batch,
        )


class ImageSource(ExamplesSource):
    """The images that a configuration names, with labels that are corrupted as it says.

    Args:
        task: a user's own; None: classification.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        *,
        group: Group,
        device: torch.device,
        task: Task | None = None,
    ):
        """
        Raises:
            UserError: if images or labels cannot be divided or corrupted as the configuration says.
        """
        self.dataset, data = dataset, config.data
        refuse_other_sections(data, "one label an image")
        policy, clean = build_policy(config, dataset), dataset.train.labels
        observed, matrix = observed_labels(config, dataset)
        self._matrix = matrix
        is_known = config.data.noise.kind != "none" or not _is_brought(data.name)

        def images(part: ImageSet, labels: Int[np.ndarray, " n"]) -> LabelledImages:
            return LabelledImages(
                part.images,
                labels,
                mean=dataset.mean,
                std=dataset.std,
                augment=data.augment,
                padding_mode=data.crop_padding,
            )

        super().__init__(
            partial(images, dataset.train),
            images(dataset.test, dataset.test.labels),
            Labels(
                observed,
                clean if data.validation_labels == "clean" else observed,
                policy.in_validation(len(clean)),
                matrix if is_known else None,
                tuple(dataset.train.class_names),
                clean if is_known else None,
            ),
            policy,
            config.training,
            balance=clean,
            seed=config.seed,
            group=group,
            device=device,
            at_pass_end=data.at_pass_end,
            augment_validation=data.augment_validation,
            task=task,
        )

    @cached_property
    def corrupted(self) -> CorruptedLabels | None:
        """The labels of the training part that are known to be wrong; None: none is."""
        rows, labels = self.split(0).train, self.labels()
        clean = self.dataset.train.labels[rows]
        is_wrong = labels.observed[rows] != clean
        if not is_wrong.any():
            return None
        realised = noise.realised(clean, labels.observed[rows], self.dataset.num_classes)
        return CorruptedLabels(rows, is_wrong, self._matrix, realised)


def _is_brought(name: str) -> bool:
    """Whether a set's labels are somebody's own, of which nobody can say how many are wrong."""
    return name == "folder" or is_import_path(name)


def fold_epochs(num_folds: int, training: TrainingConfig, split: Split) -> int:
    """For how many epochs one fold of the validation images is validated on: about one pass through all that is
    trained on.

    Turns are counted from the first round, so that the one in which warm rounds end is shorter.

    Raises:
        UserError: if a fold is too small for a validation minibatch.
    """
    num_validation = len(split.validation)
    smallest = num_validation // num_folds
    if training.val_batch_size > smallest:
        raise UserError(
            f"training.val_batch_size={training.val_batch_size} is more than the {smallest} images of a fold: with "
            f"method.clean_images=trusted one of method.clean_folds={num_folds} parts of the {num_validation} "
            "validation images is validated on at a time; lower val_batch_size or clean_folds, or enlarge "
            "data.num_validation."
        )
    pass_rounds = (len(split.train) + num_validation - smallest) / (training.batch_size * training.num_steps)
    return max(1, round(pass_rounds / (smallest // training.val_batch_size)))
