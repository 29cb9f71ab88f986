"""From a configuration to images, labels and minibatches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.assembly.parts import Parts
from l2t_ray.data import catalog, label_files, noise, splits
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.labelled_images import LabelledImages
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.similar import similar_classes
from l2t_ray.data.splits import Policy, Split
from l2t_ray.interfaces import Data, UserError
from l2t_ray.settings.experiment import DataConfig, ExperimentConfig, L2TDLNConfig, MethodConfig

DEFAULT_ROOT = Path("data")


def data_root(environment: str | None, configured: Path | None) -> Path:
    """Where the image files are: as configured, or else as the environment (L2T_DATA) says."""
    return configured or (Path(environment) if environment else DEFAULT_ROOT)


def load_dataset(data: DataConfig) -> Dataset:
    """
    Raises:
        UserError: if it cannot be opened, or is one of images with masks, where labels are needed.
    """
    dataset = open_dataset(data)
    if isinstance(dataset, MaskedDataset):
        raise UserError(f"data.name={data.name} has masks, and this needs images with a label each; name another set.")
    return dataset


def open_dataset(data: DataConfig) -> Dataset | MaskedDataset:
    return catalog.load(
        data.name,
        root=data.root or DEFAULT_ROOT,
        verify=data.verify,
        download=data.download,
        image_size=data.image_size,
        options=data.options,
    )


def build_policy(config: ExperimentConfig, dataset: Dataset) -> Policy:
    data = config.data
    if dataset.validation is not None:
        if data.split == "redivide":
            raise UserError(
                "data.split is 'redivide', but validation images were set apart below data.root; set data.split=fixed."
            )
        return splits.given(
            dataset.train.labels,
            dataset.validation,
            config.seed,
            num_train=data.num_train,
            class_names=dataset.train.class_names,
        )
    divide = splits.fixed if data.split == "fixed" else splits.redivided
    return divide(
        dataset.train.labels,
        data.num_validation,
        config.seed,
        num_train=data.num_train,
        class_names=dataset.train.class_names,
    )


def observed_labels(config: ExperimentConfig, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The training labels as the student sees them, and the matrix of the noise: row the class, column the label.

    Labels that were brought as a file have the matrix that they show.

    Raises:
        UserError: if a file does not fit the data set, or the data set has no such noise.
    """
    labels, num_classes = dataset.train.labels, dataset.num_classes
    setting, seed = config.data.noise, config.seed
    match setting.kind:
        case "none":
            return labels, np.eye(num_classes)
        case "flip_to_two":
            return noise.flip_to_two(labels, setting.rate, num_classes, seed)
        case "flip_to_one":
            return noise.flip_to_one(labels, setting.rate, num_classes, seed)
        case "uniform":
            return noise.uniform(labels, setting.rate, num_classes, seed)
        case "flip_to_similar":
            similar = similar_classes(dataset.name)
            if similar is None:
                raise UserError(
                    f"data.noise.kind=flip_to_similar knows cifar10 and cifar100 alone, not {dataset.name}; "
                    "give a transition matrix of your own with data.noise.kind=matrix."
                )
            return noise.flip_to_similar(labels, setting.rate, similar, seed)
        case "matrix":
            assert setting.file is not None
            matrix = label_files.read_matrix(
                setting.file, num_classes, column=setting.column, class_names=dataset.train.class_names
            )
            return noise.apply_transition(labels, matrix, seed), matrix
        case "labels":
            assert setting.file is not None
            num_own = None if dataset.validation is None else len(labels) - len(dataset.validation)
            observed = label_files.read_labels(setting.file, dataset.train, column=setting.column, num_own=num_own)
            return observed, noise.realised(labels, observed, num_classes)


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


def corrupted_labels(config: ExperimentConfig, dataset: Dataset) -> CorruptedLabels | None:
    """None where no label of the training part is wrong."""
    observed, matrix = observed_labels(config, dataset)
    rows = build_policy(config, dataset).at(0).train
    clean = dataset.train.labels[rows]
    is_wrong = observed[rows] != clean
    if not is_wrong.any():
        return None
    return CorruptedLabels(rows, is_wrong, matrix, noise.realised(clean, observed[rows], dataset.num_classes))


def build_loader(parts: Parts, policy: Policy, *, trains_on_validation: bool = False) -> RoundLoader:
    """Batches of the images that `policy` gives; validation images that are trained on keep their validation labels."""
    config, dataset = parts.config, parts.dataset
    data, training = config.data, config.training
    observed, _ = observed_labels(config, dataset)
    if trains_on_validation and data.validation_labels == "clean":
        observed = np.where(clean_images(parts).cpu().numpy(), dataset.train.labels, observed)
    sampler = RoundSampler(
        policy,
        seed=config.seed,
        num_steps=training.num_steps,
        train_batch=training.batch_size,
        val_batch=training.val_batch_size,
        at_pass_end=data.at_pass_end,
    )
    judged = dataset.train.labels if data.validation_labels == "clean" else observed

    def images(part: ImageSet, labels: Int[np.ndarray, " n"]) -> LabelledImages:
        return LabelledImages(
            part.images,
            labels,
            mean=dataset.mean,
            std=dataset.std,
            augment=data.augment,
            padding_mode=data.crop_padding,
        )

    return RoundLoader(
        images(dataset.train, observed),
        images(dataset.train, judged),
        images(dataset.test, dataset.test.labels),
        sampler,
        seed=config.seed,
        num_classes=dataset.num_classes,
        rank=parts.group.rank,
        world_size=parts.group.size,
        device=parts.device,
        augment_validation=data.augment_validation,
    )


def training_data(method: MethodConfig, parts: Parts) -> tuple[Data, Data]:
    """The batches that a method is given: plain ones, and those in which it may train on validation images, as
    `clean_images` says; the same where it may not."""
    policy = build_policy(parts.config, parts.dataset)
    plain = build_loader(parts, policy)
    if method.clean_images == "judge":
        return plain, plain
    if isinstance(method, L2TDLNConfig) and method.clean_images == "trusted":
        lasts = fold_epochs(method.clean_folds, parts.config, policy.at(0))
        policy = splits.in_folds(policy, parts.dataset.train.labels, parts.config.seed, method.clean_folds, lasts)
    elif method.clean_images == "fine_tuned":
        policy = splits.validation_alone(policy)
    else:
        policy = splits.mixed(policy)
    return plain, build_loader(parts, policy, trains_on_validation=True)


def fold_epochs(num_folds: int, config: ExperimentConfig, split: Split) -> int:
    """For how many epochs one fold of the validation images judges: about one pass through all that is trained on.

    Turns are counted from the first round, so that the one in which warm rounds end is shorter.

    Raises:
        UserError: if a fold is too small for a validation minibatch.
    """
    training, num_validation = config.training, len(split.validation)
    smallest = num_validation // num_folds
    if training.val_batch_size > smallest:
        raise UserError(
            f"training.val_batch_size={training.val_batch_size} is more than the {smallest} images of a fold: with "
            f"method.clean_images=trusted one of method.clean_folds={num_folds} parts of the {num_validation} "
            "validation images judges at a time; lower val_batch_size or clean_folds, or enlarge data.num_validation."
        )
    pass_rounds = (len(split.train) + num_validation - smallest) / (training.batch_size * training.num_steps)
    return max(1, round(pass_rounds / (smallest // training.val_batch_size)))


def clean_images(parts: Parts) -> Bool[Tensor, " images"]:
    """By image of the training set, whether it is one of the validation images, which are the same in every epoch."""
    is_clean = torch.zeros(len(parts.dataset.train), dtype=torch.bool)
    is_clean[torch.from_numpy(build_policy(parts.config, parts.dataset).at(0).validation)] = True
    return is_clean.to(parts.device)
