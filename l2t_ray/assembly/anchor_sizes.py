"""Anchors that are to follow from the data: `student.anchors=kmeans`, and the sizes that this comes to."""

import numpy as np
import torch
from jaxtyping import Float

from l2t_ray.assembly.images import build_policy, observed_boxes, open_dataset
from l2t_ray.assembly.students import build_student
from l2t_ray.data.box_transforms import letterbox, moved_boxes
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.checked import AnyDataset
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.students.anchors import KMEANS, anchors_of

_DIGITS = 2
"""Behind the point: more would be seen in a run's configuration, and in nothing else."""


def with_anchors(config: ExperimentConfig, dataset: AnyDataset | None = None) -> ExperimentConfig:
    """The configuration with the sizes in place of `kmeans`, as a run writes it down; any other as it is.

    They are those of the boxes that are trained on, under their noise, as they lie in the student's inputs without
    augmentation; as many as the student has by itself. The same data and settings give the same ones.

    Args:
        dataset: of the configuration; None: it is opened, where it is needed.

    Raises:
        UserError: if there are no boxes, too few of them, or the student has no anchors.
    """
    if getattr(config.student, "anchors", None) != KMEANS:
        return config
    dataset = dataset or open_dataset(config.data)
    if not isinstance(dataset, BoxedDataset):
        raise UserError(
            f"student.anchors={KMEANS} is of boxes, and data.name={config.data.name} has none; leave student.anchors "
            "out, or name a set that has some."
        )
    default = type(config.student).model_fields["anchors"].default
    usual = config.student.model_copy(update={"anchors": default})
    with torch.device("meta"):
        own = getattr(build_student(usual, dataset, group=SingleProcess(), seed=config.seed), "anchors", ())
    boxes = _training_boxes(config, dataset)
    found = anchors_of(torch.from_numpy(boxes), sum(map(len, own)), seed=config.seed)
    sizes = tuple((round(width, _DIGITS), round(height, _DIGITS)) for width, height in found)
    return config.model_copy(update={"student": config.student.model_copy(update={"anchors": sizes})})


def _training_boxes(config: ExperimentConfig, dataset: BoxedDataset) -> Float[np.ndarray, "n 4"]:
    """Of the training part (of the first epoch, where it changes). No image is read."""
    noisy = observed_boxes(config, dataset)
    boxes = dataset.train.boxes if noisy is None else noisy.boxes
    rows, frame = build_policy(config, dataset).at(0).train.tolist(), config.data.boxes.size
    heights, widths = dataset.train.sizes.T.tolist()
    moved = [moved_boxes(boxes[row], letterbox(heights[row], widths[row], frame)) for row in rows]
    return np.concatenate([own.corners[~own.crowd] for own in moved])
