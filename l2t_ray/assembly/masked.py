"""From a configuration to minibatches of images with masks."""

import numpy as np
import torch

from l2t_ray.data import splits
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.masked_images import MaskedImages
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.data.row_shares import RowShares
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy
from l2t_ray.interfaces import Data, Group, Task, UserError
from l2t_ray.settings.experiment import ExperimentConfig


def masked_policy(config: ExperimentConfig, dataset: MaskedDataset) -> Policy:
    """Which images are trained and validated on. Images have several classes, so that parts are not balanced by them.

    Raises:
        UserError: if there are too few images.
    """
    data, unlabelled = config.data, np.zeros(len(dataset.train), dtype=np.int64)
    if dataset.validation is not None:
        if data.split == "redivide":
            raise UserError(
                f"data.split is 'redivide', but validation images of {data.name} are set apart; set data.split=fixed."
            )
        return splits.given(unlabelled, dataset.validation, config.seed, num_train=data.num_train)
    divide = splits.fixed if data.split == "fixed" else splits.redivided
    return divide(unlabelled, data.num_validation, config.seed, num_train=data.num_train)


def masked_data(
    config: ExperimentConfig,
    dataset: MaskedDataset,
    policy: Policy,
    task: Task,
    *,
    group: Group,
    device: torch.device,
) -> Data:
    """Minibatches of crops; validation and test images are whole, unless data.augment_validation crops the former.

    Raises:
        UserError: if a setting is of images with labels alone, or batches do not fit the set.
    """
    data, training = config.data, config.training
    for key, value, only in (
        ("data.noise.kind", data.noise.kind, "none"),
        ("data.validation_labels", data.validation_labels, "clean"),
        ("data.crop_padding", data.crop_padding, "zero"),
    ):
        if value != only:
            raise UserError(f"{key} is {value!r}, which images with masks do not know; set {key}={only}.")

    def crops(images: MaskedSet) -> MaskedImages:
        return MaskedImages(
            images,
            mean=dataset.mean,
            std=dataset.std,
            crop=data.masks.crop,
            augment=data.augment,
            scale=data.masks.scale,
            pixels=data.masks.pixels,
        )

    train, test = crops(dataset.train), crops(dataset.test)
    sampler = RoundSampler(
        policy,
        seed=config.seed,
        num_steps=training.num_steps,
        train_batch=training.batch_size,
        val_batch=training.val_batch_size,
        at_pass_end=data.at_pass_end,
    )
    loader = RoundLoader(
        *(train, train, test),
        sampler,
        seed=config.seed,
        num_classes=dataset.num_classes,
        rank=group.rank,
        world_size=group.size,
        device=device,
        augment_validation=data.augment_validation,
        test_batch=min(train.at_once, test.at_once),
    )
    return RowShares(loader, task, group)
