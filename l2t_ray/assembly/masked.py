"""From a configuration to minibatches of images with masks."""

import numpy as np
import torch

from l2t_ray.assembly.images import build_policy, label_setting, refuse_other_sections
from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.data.masked_images import MaskedImages
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.interfaces import Group, Task, UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.settings.experiment import ExperimentConfig


class MaskedSource(ExamplesSource):
    """Crops of images with masks; validation and test images are whole, unless data.augment_validation crops the
    former. Each example has the share of one of its rows in the global minibatch (`RowShares`)."""

    corrupted = None
    """Nobody says which pixels are labelled wrong."""

    def __init__(
        self, config: ExperimentConfig, dataset: MaskedDataset, task: Task, *, group: Group, device: torch.device
    ):
        """
        Raises:
            UserError: if a setting is of images with labels alone, or there are too few images.
        """
        self.dataset = dataset
        _refuse_settings_of_labels(config)
        policy, data = build_policy(config, dataset), config.data
        is_validation = policy.in_validation(len(dataset.train))
        unlabelled = np.zeros(len(dataset.train), dtype=np.int64)

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
        super().__init__(
            lambda taught: train,
            test,
            Labels(unlabelled, unlabelled, is_validation, None, dataset.train.class_names),
            policy,
            config.training,
            balance=unlabelled,
            seed=config.seed,
            group=group,
            device=device,
            at_pass_end=data.at_pass_end,
            augment_validation=data.augment_validation,
            test_batch=min(train.at_once, test.at_once),
            task=task,
        )


def _refuse_settings_of_labels(config: ExperimentConfig) -> None:
    data = config.data
    refuse_other_sections(data, "masks")
    if unknown := label_setting(data):
        key, value, usual = unknown
        raise UserError(f"{key} is {value!r}, which images with masks do not know; set {key}={usual}.")
