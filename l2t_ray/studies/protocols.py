"""The schedules that the methods' own papers train with: the budget `protocol` of a comparison.

Under the other budget, `parity`, all methods take the same steps on the same images. Lengths are in passes over the
training part, so that they scale with it. Sources: the released code of Meta-Weight-Net (Shu et al. 2019; its figure
for cross-entropy stems from a schedule of 60,000 steps of 100 images that drops after 40,000 and 50,000), of MentorNet
(Jiang et al. 2018; 39,000 steps of 128 images on CIFAR's 50,000), and of L2T-DLN (37,500 steps of 25 images on 25,000).
SLF's authors published no schedule and L2T-DLN compares with it on its own; none is known of L2R, which keeps the
configuration's.
"""

from typing import Any

from l2t_ray.settings.experiment import MethodConfig, TrainingConfig

_SHU = {
    "passes": 120,
    "batch_size": 100,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay": "drops",
    "drops": (2 / 3, 5 / 6),
}
_JIANG = {
    "passes": 100,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "decay": "drops",
    "drops": (19_531 / 39_000, 25_000 / 39_000, 30_000 / 39_000),
}
_HAI = {
    "passes": 37.5,
    "batch_size": 25,
    "learning_rate": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "decay": "constant",
    "drops": (),
}
_SCHEDULES: dict[str, dict[str, Any]] = {
    "cross_entropy": _SHU,
    "gce": _SHU,
    "static_dln": _SHU,
    "forward_correction": _SHU,
    "glc": _SHU,
    "mw_net": _SHU,
    "mentornet": _JIANG,
    "slf": _HAI,
    "l2t_dln": _HAI,
}


def own_schedule(training: TrainingConfig, method: MethodConfig, num_train: int) -> TrainingConfig:
    """The training section under the schedule of the method's own paper, or as it is where none is known.

    Args:
        num_train: images of the training part. A batch is at most all of them.
    """
    schedule = dict(_SCHEDULES.get(method.name, {}))
    if not schedule:
        return training
    batch = min(schedule["batch_size"], num_train)
    steps = schedule.pop("passes") * num_train / batch
    rounds = max(1, round(steps / training.num_steps))
    return training.model_copy(update=schedule | {"batch_size": batch, "num_rounds": rounds})
