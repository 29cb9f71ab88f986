"""The training labels of a run that look wrong."""

import numpy as np
import torch
from torch import Tensor

from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.core.suspects import Suspects, suspects
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.training.checkpoint import Checkpoint


def suspects_of(method: MethodSettings, checkpoint: Checkpoint, source: ExamplesSource) -> Suspects | None:
    """The labels of the training part (of the first epoch, where it changes), by row of the training set.

    Args:
        method: of an arm that is done.

    Returns:
        None: the method cannot say, for it remembers nothing of its images.
    """
    tally = checkpoint.memories.get(method.arm)
    if tally is None or not isinstance(method, LearnedLossSettings):
        return None
    places = np.sort(source.split(0).train)
    rows, given = torch.tensor(places), torch.tensor(source.labels().observed[places]).long()
    found = suspects(tally[rows], given, _channel(method, checkpoint, tally.shape[1]))
    return found._replace(places=rows[found.places])


def _channel(method: LearnedLossSettings, checkpoint: Checkpoint, num_classes: int) -> Tensor | None:
    """As the loss had it at the end; None: the noise was never estimated, or no teacher has changed the loss."""
    snapshots = checkpoint.snapshots.get(method.arm)
    if not snapshots or not method.warm_share:
        return None
    return method.loss.noise(snapshots[max(snapshots)], num_classes)
