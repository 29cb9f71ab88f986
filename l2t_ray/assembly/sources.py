"""From a configuration to the source of its minibatches, whatever its images are labelled with."""

import torch

from l2t_ray.assembly.boxed import BoxedSource
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.masked import MaskedSource
from l2t_ray.assembly.source import ImageSource
from l2t_ray.assembly.tasks import build_task
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.interfaces import Group
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig

AnySource = ImageSource | MaskedSource | BoxedSource


def source_of(config: ExperimentConfig, *, group: Group | None = None, device: torch.device | str = "cpu") -> AnySource:
    """
    Args:
        group: of the run's workers; None: it is this process alone.
    """
    group, device, dataset = group or SingleProcess(), torch.device(device), open_dataset(config.data)
    if isinstance(dataset, MaskedDataset):
        return MaskedSource(config, dataset, build_task(config), group=group, device=device)
    if isinstance(dataset, BoxedDataset):
        return BoxedSource(config, dataset, group=group, device=device)
    return ImageSource(config, dataset, group=group, device=device)
