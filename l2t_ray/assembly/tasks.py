"""From a configuration to the task that is learned: what its data set's images are labelled with says which."""

from l2t_ray.assembly.images import open_dataset
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.sets import DATA_SETS
from l2t_ray.interfaces import Metric, Task, UserError
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tasks.classification import Classification
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
        raise UserError(
            f"data.name={config.data.name} has boxes, and jobs train on images with labels or masks; train a detector in "
            "a loop of your own with l2t_ray.tasks.detection.Detection, or name another set."
        )
    if not isinstance(dataset, MaskedDataset):
        return Classification()
    return Segmentation(dataset.train.class_names, ignore=dataset.train.ignore, error=config.data.masks.error)


def headline_for(config: ExperimentConfig) -> Metric:
    """What the experiment's students are chosen and reported by."""
    return build_task(config).metrics[0]
