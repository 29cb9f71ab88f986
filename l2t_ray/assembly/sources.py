"""From a configuration to the source of its minibatches, whatever its images are labelled with."""

import torch

from l2t_ray.assembly.boxed import BoxedSource
from l2t_ray.assembly.example_source import ExampleSource
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.masked import MaskedSource
from l2t_ray.assembly.source import ImageSource
from l2t_ray.assembly.tasks import build_task
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.example_sets import ExampleDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.interfaces import Group, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig

AnySource = ImageSource | MaskedSource | BoxedSource | ExampleSource


def source_of(config: ExperimentConfig, *, group: Group | None = None, device: torch.device | str = "cpu") -> AnySource:
    """
    Args:
        group: of the run's workers; None: it is this process alone.

    Raises:
        UserError: if the task does not fit the data, or a setting does not.
    """
    group, device, dataset = group or SingleProcess(), torch.device(device), open_dataset(config.data)
    own = None if config.task is None else build_task(config)
    if own is not None and own.row_is_example and getattr(dataset.train, "labels", None) is None:
        raise UserError(
            f"task {own.name} says that each example is one row, and data.name={config.data.name} gives no label of "
            "each; give the examples labels (`ExampleSet`), or set row_is_example = False in the task."
        )
    if isinstance(dataset, MaskedDataset):
        return MaskedSource(config, dataset, own or build_task(config), group=group, device=device)
    if isinstance(dataset, ExampleDataset):
        return ExampleSource(config, dataset, own or build_task(config), group=group, device=device)
    if isinstance(dataset, BoxedDataset):
        return BoxedSource(config, dataset, group=group, device=device, task=own)
    return ImageSource(config, dataset, group=group, device=device, task=own)
