"""The schedules that papers train with, in passes over the training part, so that they scale with it.

A method names its own paper's (`MethodSettings.paper_schedule`); a comparison with `--budget protocol` uses it.
"""

from typing import Any, NamedTuple


class PaperSchedule(NamedTuple):
    """Length and optimiser of a training; all but `passes` are keys of the section `training`."""

    passes: float
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    decay: str
    drops: tuple[float, ...] = ()

    def training(self, num_train: int, num_steps: int) -> dict[str, Any]:
        """The settings of `training` that these are for `num_train` images in rounds of `num_steps` steps.

        A batch is at most all images.
        """
        settings = self._asdict()
        batch_size = min(self.batch_size, num_train)
        total_steps = settings.pop("passes") * num_train / batch_size
        return settings | {"batch_size": batch_size, "num_rounds": max(1, round(total_steps / num_steps))}


SHU_2019 = PaperSchedule(120, 100, 0.1, 0.9, 5e-4, "drops", (2 / 3, 5 / 6))
"""Meta-Weight-Net's released code. Its figure for cross-entropy stems from 60,000 steps of 100 images, with drops after
40,000 and 50,000."""

JIANG_2018 = PaperSchedule(100, 128, 0.1, 0.9, 2e-4, "drops", (19_531 / 39_000, 25_000 / 39_000, 30_000 / 39_000))
"""MentorNet's released code: 39,000 steps of 128 images on CIFAR's 50,000."""

HAI_2023 = PaperSchedule(37.5, 25, 0.1, 0.0, 0.0, "constant")
"""L2T-DLN's released code: 37,500 steps of 25 images on 25,000."""
