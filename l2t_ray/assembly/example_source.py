"""From a configuration to minibatches of examples of the user's own kind."""

import numpy as np
import torch

from l2t_ray.assembly.images import build_policy, label_setting, refuse_other_sections
from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.data.example_sets import ExampleDataset
from l2t_ray.data.examples import Undrawn
from l2t_ray.interfaces import Group, Task, UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.settings.experiment import ExperimentConfig


class ExampleSource(ExamplesSource):
    """Examples as their set gives them. Where they have labels these are taken for right: who brings noisy ones knows
    best how noisy they are."""

    corrupted = None

    def __init__(
        self, config: ExperimentConfig, dataset: ExampleDataset, task: Task, *, group: Group, device: torch.device
    ):
        """
        Raises:
            UserError: if a setting is of images, or there are too few examples.
        """
        self.dataset, train = dataset, dataset.train
        _refuse_settings_of_images(config)
        policy, data = build_policy(config, dataset), config.data
        labels = np.zeros(len(train), dtype=np.int64) if train.labels is None else train.labels
        super().__init__(
            lambda taught: train.examples if data.augment != "none" else Undrawn(train.examples),
            dataset.test.examples,
            Labels(labels, labels, policy.in_validation(len(train)), None, train.class_names),
            policy,
            config.training,
            balance=labels,
            seed=config.seed,
            group=group,
            device=device,
            at_pass_end=data.at_pass_end,
            augment_validation=data.augment_validation,
            task=task,
        )


def _refuse_settings_of_images(config: ExperimentConfig) -> None:
    data = config.data
    refuse_other_sections(data, "examples of its own")
    if unknown := label_setting(data):
        key, value, _ = unknown
        raise UserError(f"{key} is {value!r}, which data.name={data.name} does not know; leave it out.")
    if data.augment == "flip":
        raise UserError(
            f"data.augment is 'flip', which data.name={data.name} does not know; set none, or leave it out for what "
            "its examples draw."
        )
