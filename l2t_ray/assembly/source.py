"""From a configuration to images, labels and minibatches, put together once in a run."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from l2t_ray.assembly.images import build_policy, load_dataset, observed_labels
from l2t_ray.data import noise, splits
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.labelled_images import LabelledImages
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split
from l2t_ray.interfaces import Batch, Group, UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.parallel.group import SingleProcess
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


class Source:
    """The data of a run on one worker (see `methods.parts.Source`). What is the same for all arms is made once."""

    def __init__(self, config: ExperimentConfig, dataset: Dataset, *, group: Group, device: torch.device):
        """
        Raises:
            UserError: if images or labels cannot be divided or corrupted as the configuration says.
        """
        self.dataset, self.device = dataset, device
        self._config, self._group = config, group
        self._policy = build_policy(config, dataset)

    @classmethod
    def of(cls, config: ExperimentConfig, device: torch.device | str = "cpu") -> "Source":
        """That of a run in this process."""
        return cls(config, load_dataset(config.data), group=SingleProcess(), device=torch.device(device))

    def labels(self) -> Labels:
        return self._labels

    @cached_property
    def _labels(self) -> Labels:
        clean = self.dataset.train.labels
        observed, matrix = observed_labels(self._config, self.dataset)
        validated_by = clean if self._config.data.validation_labels == "clean" else observed
        is_validation = np.zeros(len(clean), dtype=bool)
        is_validation[self.split(0).validation] = True
        return Labels(observed, validated_by, is_validation, matrix, tuple(self.dataset.train.class_names))

    @cached_property
    def corrupted(self) -> CorruptedLabels | None:
        """None where no label of the training part is wrong."""
        rows, observed = self.split(0).train, self._labels.observed
        clean = self.dataset.train.labels[rows]
        is_wrong = observed[rows] != clean
        if not is_wrong.any():
            return None
        realised = noise.realised(clean, observed[rows], self.dataset.num_classes)
        return CorruptedLabels(rows, is_wrong, self._labels.noise, realised)

    def split(self, epoch: int) -> Split:
        return self._policy.at(epoch)

    def images(self, rows: Int[np.ndarray, " n"]) -> list[Batch]:
        return self._plain.training_images(rows)

    def plain(self) -> RoundLoader:
        return self._plain

    @cached_property
    def _plain(self) -> RoundLoader:
        return self._loader(self._policy, self._labels.observed)

    def mixed(self) -> RoundLoader:
        return self._with_validation(splits.mixed(self._policy))

    def validation_alone(self) -> RoundLoader:
        return self._with_validation(splits.validation_alone(self._policy))

    def in_folds(self, num_folds: int) -> RoundLoader:
        """
        Raises:
            UserError: if a fold is too small for a validation minibatch.
        """
        config = self._config
        lasts = fold_epochs(num_folds, config.training, self.split(0))
        return self._with_validation(
            splits.in_folds(self._policy, self.dataset.train.labels, config.seed, num_folds, lasts)
        )

    def _with_validation(self, policy: Policy) -> RoundLoader:
        """Batches where validation images may be trained on: these keep their validation labels."""
        labels = self._labels
        return self._loader(policy, np.where(labels.is_validation, labels.validation, labels.observed))

    def _loader(self, policy: Policy, observed: Int[np.ndarray, " images"]) -> RoundLoader:
        config, data, training = self._config, self._config.data, self._config.training
        sampler = RoundSampler(
            policy,
            seed=config.seed,
            num_steps=training.num_steps,
            train_batch=training.batch_size,
            val_batch=training.val_batch_size,
            at_pass_end=data.at_pass_end,
        )

        def images(part: ImageSet, labels: Int[np.ndarray, " n"]) -> LabelledImages:
            return LabelledImages(
                part.images,
                labels,
                mean=self.dataset.mean,
                std=self.dataset.std,
                augment=data.augment,
                padding_mode=data.crop_padding,
            )

        train, test = self.dataset.train, self.dataset.test
        return RoundLoader(
            images(train, observed),
            images(train, self._labels.validation),
            images(test, test.labels),
            sampler,
            seed=config.seed,
            num_classes=self.dataset.num_classes,
            rank=self._group.rank,
            world_size=self._group.size,
            device=self.device,
            augment_validation=data.augment_validation,
        )


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
            "validation images judges at a time; lower val_batch_size or clean_folds, or enlarge data.num_validation."
        )
    pass_rounds = (len(split.train) + num_validation - smallest) / (training.batch_size * training.num_steps)
    return max(1, round(pass_rounds / (smallest // training.val_batch_size)))
