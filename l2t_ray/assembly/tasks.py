"""From a configuration to the task that is learned: one of the user's own, or else what the data is labelled with says
which."""

from collections.abc import Sequence

import torch

from l2t_ray.assembly.anchor_sizes import with_anchors
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.students import build_student
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.example_sets import ExampleDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.sets import DATA_SETS
from l2t_ray.interfaces import Metric, Task, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.settings.signature import factory, takes
from l2t_ray.settings.task_section import FACTS, TaskSettings
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.detection import Detection
from l2t_ray.tasks.segmentation import Segmentation


def build_task(config: ExperimentConfig) -> Task:
    """
    Raises:
        UserError: if nothing here learns what the data is labelled with, or a task of one's own cannot be made.
    """
    if config.task is not None:
        return _own(config.task, config)
    known = DATA_SETS.get(config.data.name)
    if known is not None and known.targets == "classes":
        return Classification()
    dataset = open_dataset(config.data)
    if isinstance(dataset, BoxedDataset):
        return _detection(config, dataset)
    if isinstance(dataset, ExampleDataset):
        raise UserError(
            f"data.name={config.data.name} has examples of its own kind; name the task that knows them, as in "
            "task=my.module:make."
        )
    if not isinstance(dataset, MaskedDataset):
        return Classification()
    masks = config.data.masks
    return Segmentation(
        dataset.train.class_names,
        ignore=dataset.train.ignore,
        error=masks.error,
        loss_terms=masks.terms,
        auxiliary=masks.auxiliary,
        aux_weight=masks.auxiliary_weight,
    )


def _detection(config: ExperimentConfig, dataset: BoxedDataset) -> Detection:
    """The task of a student's own anchors and strides, which it has as attributes; no weights are drawn to see them."""
    config = with_anchors(config, dataset)
    with torch.device("meta"):
        drawn = config.student.model_copy(update={"initial_weights": None})
        student = build_student(drawn, dataset, group=SingleProcess(), seed=config.seed)
    anchors, strides = (getattr(student, name, None) for name in ("anchors", "strides"))
    if not (isinstance(anchors, Sequence) and isinstance(strides, Sequence)):
        raise UserError(
            f"data.name={config.data.name} has boxes, and student {config.student.name!r} finds none: it has no "
            "anchors and strides; set student.name=yolo, or another set."
        )
    boxes = config.data.boxes
    names = dataset.train.class_names
    return Detection(names, anchors, strides, loss=boxes.loss, error=boxes.error, by_class=boxes.by_class)


def _own(settings: TaskSettings, config: ExperimentConfig) -> Task:
    make = factory(TaskSettings, settings.name)
    facts = takes(make, dict.fromkeys(FACTS))
    if facts:
        dataset = open_dataset(config.data)
        known = {"class_names": dataset.train.class_names, "num_classes": dataset.num_classes}
        facts = {key: known[key] for key in facts}
    try:
        task = make(**facts, **settings.options())
    except UserError:
        raise
    except Exception as error:  # it is the user's own code that runs here
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"task {settings.name!r} cannot be made ({reason}); mend it or its settings.") from error
    members = {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}
    if lacking := sorted(name for name in members if not hasattr(task, name)):
        raise UserError(
            f"task {settings.name!r} gives a {type(task).__name__} without {', '.join(lacking)}; give it what `Task` "
            "in l2t_ray/interfaces.py has."
        )
    if not task.metrics:
        raise UserError(f"task {settings.name!r} has no metrics; name at least one, by which students are chosen.")
    return task


def headline_for(config: ExperimentConfig) -> Metric:
    """What the experiment's students are chosen and reported by."""
    return build_task(config).metrics[0]
