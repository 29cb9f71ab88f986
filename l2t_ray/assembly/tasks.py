"""From a configuration to the task that is learned: what its data set's images are labelled with says which."""

from collections.abc import Sequence

import torch

from l2t_ray.assembly.anchor_sizes import with_anchors
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.students import build_student
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.sets import DATA_SETS
from l2t_ray.interfaces import Metric, Task, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.detection import Detection
from l2t_ray.tasks.segmentation import Segmentation


def build_task(config: ExperimentConfig) -> Task:
    """
    Raises:
        UserError: if nothing here learns what the images are labelled with.
    """
    known = DATA_SETS.get(config.data.name)
    if known is not None and known.targets == "classes":
        return Classification()
    dataset = open_dataset(config.data)
    if isinstance(dataset, BoxedDataset):
        return _detection(config, dataset)
    if not isinstance(dataset, MaskedDataset):
        return Classification()
    return Segmentation(dataset.train.class_names, ignore=dataset.train.ignore, error=config.data.masks.error)


def _detection(config: ExperimentConfig, dataset: BoxedDataset) -> Detection:
    """The task of a student's own anchors and strides, which it has as attributes; no weights are drawn to see them."""
    config = with_anchors(config, dataset)
    with torch.device("meta"):
        student = build_student(config.student, dataset, group=SingleProcess(), seed=config.seed)
    anchors, strides = (getattr(student, name, None) for name in ("anchors", "strides"))
    if not (isinstance(anchors, Sequence) and isinstance(strides, Sequence)):
        raise UserError(
            f"data.name={config.data.name} has boxes, and student {config.student.name!r} finds none: it has no "
            "anchors and strides; set student.name=yolo, or another set."
        )
    boxes = config.data.boxes
    return Detection(dataset.train.class_names, anchors, strides, loss=boxes.loss, error=boxes.error)


def headline_for(config: ExperimentConfig) -> Metric:
    """What the experiment's students are chosen and reported by."""
    return build_task(config).metrics[0]
