"""The training labels of a run that look wrong."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from l2t_ray.assembly.source import Source
from l2t_ray.core.suspects import Suspects, suspects
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.settings import MethodSettings


def suspects_of(method: MethodSettings, remembered: Mapping[str, Tensor] | None, source: Source) -> Suspects | None:
    """The labels of the training part (of the first epoch, where it changes), by row of the training set.

    Args:
        remembered: what the method's arm has in `Checkpoint.remembered`; None: it has no memory.

    Returns:
        None: the method cannot say, for it remembers nothing of its images.
    """
    if remembered is None or not isinstance(method, LearnedLossSettings):
        return None
    rows, labels = torch.from_numpy(np.sort(source.split(0).train)), source.labels()
    loss = method.loss_network.bare(len(labels.class_names)).spec
    given = torch.from_numpy(labels.observed)[rows].long()
    found = suspects(remembered["memory"][rows], given, loss.parts.noise(remembered["phi"]))
    return found._replace(places=rows[found.places])
