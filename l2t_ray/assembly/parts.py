"""What the arms of a run share, and how its rounds are shared out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from l2t_ray.core.student import Trainee
from l2t_ray.data.catalog import Dataset
from l2t_ray.interfaces import Group, Teacher
from l2t_ray.settings.experiment import ExperimentConfig, GLCConfig, L2TDLNConfig, MethodConfig, StaticDLNConfig
from l2t_ray.training.probe import Probe

MakeTeacher = Callable[[L2TDLNConfig, int], Teacher]
"""`(method, number of classes) -> its teacher`: local, or a line to the teacher actor."""


@dataclass(frozen=True)
class Parts:
    """What the arms of a run share, on one worker."""

    config: ExperimentConfig
    dataset: Dataset
    trainee: Trainee
    group: Group
    device: torch.device
    make_teacher: MakeTeacher
    probe: Probe | None = None


def rounds_of(share: float, num_rounds: int) -> int:
    """That share of the rounds, but neither none nor all of them where there are two or more."""
    return max(1, min(num_rounds - 1, round(share * num_rounds)))


def warm_rounds(method: L2TDLNConfig | StaticDLNConfig | GLCConfig, num_rounds: int) -> int:
    return rounds_of(method.warm_share, num_rounds) if method.warm_share else 0


def estimate_rounds(method: L2TDLNConfig | StaticDLNConfig, num_rounds: int) -> list[int]:
    """The rounds that begin with an estimate of the noise: after the warm ones, and then evenly spaced until half of
    all are done. Shorter runs have fewer."""
    first = warm_rounds(method, num_rounds)
    last = max(first, num_rounds // 2)
    gap = (last - first) / max(1, method.channel_estimates - 1)
    return sorted({round(first + i * gap) for i in range(method.channel_estimates)})


def ending_start(method: MethodConfig, parts: Parts) -> int:
    share = method.fine_tuning_share if method.clean_images == "fine_tuned" else method.trusted_share
    num_rounds = parts.config.training.num_rounds
    return num_rounds - rounds_of(share, num_rounds)
