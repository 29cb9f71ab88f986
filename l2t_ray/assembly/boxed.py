"""From a configuration to minibatches of images with boxes."""

import numpy as np
import torch
from jaxtyping import Int

from l2t_ray.assembly.images import build_policy, observed_boxes, refuse_other_sections
from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.data.boxed_images import BoxedImages
from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet, Boxes
from l2t_ray.interfaces import Group, Task, UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.settings.sections import BOX_NOISE

CLEAN, NOISY = 0, 1
"""In place of a label: which boxes an image is taught with, the set's own or those under noise."""


class BoxedSource(ExamplesSource):
    """Images with boxes in a frame of one size. Validation and test images lie whole in its middle, unless
    data.augment_validation moves the former.

    Attributes:
        noisy: the boxes under noise, for all images of the training set; None: there is no noise.

    Args:
        task: a user's own; None: detection, in which each image counts as one row.
    """

    corrupted = None
    """Boxes that are shifted, scaled or dropped have no matrix; `noisy` says which were hit."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: BoxedDataset,
        *,
        group: Group,
        device: torch.device,
        task: Task | None = None,
    ):
        """
        Raises:
            UserError: if a setting is of images with labels or masks, or there are too few images.
        """
        self.dataset, data = dataset, config.data
        _refuse_settings_of_others(config)
        policy = build_policy(config, dataset)
        num_images = len(dataset.train)
        self.noisy = observed_boxes(config, dataset)
        clean = np.full(num_images, CLEAN)
        observed = clean if self.noisy is None else np.full(num_images, NOISY)

        def framed(images: BoxedSet, boxes: list[Boxes] | None = None) -> BoxedImages:
            return BoxedImages(
                images,
                mean=dataset.mean,
                std=dataset.std,
                frame=data.boxes.size,
                augment=data.augment,
                scale=data.boxes.scale,
                boxes=boxes,
            )

        def taught(which: Int[np.ndarray, " n"]) -> BoxedImages:
            if self.noisy is None:
                return framed(dataset.train)
            both = (dataset.train.boxes, self.noisy.boxes)
            return framed(dataset.train, [both[version][row] for row, version in enumerate(which.tolist())])

        test = framed(dataset.test)
        super().__init__(
            taught,
            test,
            Labels(
                observed,
                clean if data.validation_labels == "clean" else observed,
                policy.in_validation(num_images),
                None,
                dataset.train.class_names,
            ),
            policy,
            config.training,
            balance=clean,
            seed=config.seed,
            group=group,
            device=device,
            at_pass_end=data.at_pass_end,
            augment_validation=data.augment_validation,
            test_batch=test.at_once,
            task=task,
        )

    def hit_by_class(self) -> dict[str, tuple[int, int]]:
        """By class, the boxes of the training part that noise has hit, and all of them; empty where there is none."""
        if self.noisy is None:
            return {}
        train, rows = self.dataset.train, self.split(0).train.tolist()
        labels = np.concatenate([train.boxes[row].labels for row in rows])
        is_hit = np.concatenate([self.noisy.is_hit[row] for row in rows])
        names = enumerate(train.class_names)
        return {name: (int(is_hit[labels == k].sum()), int((labels == k).sum())) for k, name in names}


def _refuse_settings_of_others(config: ExperimentConfig) -> None:
    data = config.data
    refuse_other_sections(data, "boxes")
    if data.crop_padding != "zero":
        raise UserError(
            f"data.crop_padding is {data.crop_padding!r}, which images with boxes do not know; set "
            "data.crop_padding=zero."
        )
    if data.noise.kind != "none" and data.noise.kind not in BOX_NOISE:
        raise UserError(
            f"data.noise.kind is {data.noise.kind!r}, and {data.name} has boxes; set data.noise.kind to one of "
            f"{', '.join(BOX_NOISE)}."
        )
