"""The training labels of a run that look wrong."""

import numpy as np
import torch
from torch import Tensor

from l2t_ray.assembly.source import Source
from l2t_ray.core.suspects import Suspects, suspects
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.settings import MethodSettings


def suspects_of(method: MethodSettings, memory: Tensor | None, source: Source) -> Suspects | None:
    """The labels of the training part (of the first epoch, where it changes), by row of the training set.

    Args:
        memory: what the method's arm has in `Checkpoint.memories`; None: it has none.

    Returns:
        None: the method cannot say, for it remembers nothing of its images.
    """
    if memory is None or not isinstance(method, LearnedLossSettings):
        return None
    rows = torch.from_numpy(np.sort(source.split(0).train))
    given = torch.from_numpy(source.labels().observed)[rows].long()
    found = suspects(memory[rows], given, knows_noise=method.has_channel and method.warm_share > 0)
    return found._replace(places=rows[found.places])
