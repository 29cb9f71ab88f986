"""From a configuration to the student and its optimiser."""

from math import cos, pi

import torch

from l2t_ray.core.student import RateSchedule, StudentSgd
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.counted import torch_seed
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.interfaces import Group
from l2t_ray.parallel.global_batch_norm import with_global_batch_norm
from l2t_ray.settings.experiment import StudentConfig, TrainingConfig
from l2t_ray.students.initialise import seeded
from l2t_ray.students.lenet import LeNet
from l2t_ray.students.resnet import ResNet
from l2t_ray.students.wide_resnet import WideResNet


def build_student(
    student: StudentConfig, dataset: Dataset | MaskedDataset, *, group: Group, seed: int
) -> torch.nn.Module:
    channels, image_size = dataset.image_shape
    shape = {"num_classes": dataset.num_classes, "in_channels": channels}

    def build() -> torch.nn.Module:
        if student.name == "lenet":
            return LeNet(**shape, image_size=image_size)
        if student.name == "wide_resnet":
            return WideResNet(student.depth, student.width_factor, **shape, norm=student.norm)
        depth = int(student.name.removeprefix("resnet"))
        return ResNet(
            depth,
            **shape,
            widths=student.widths,
            norm=student.norm,
            shortcut=student.shortcut,
        )

    model = seeded(build, torch_seed(seed, "student"))
    return with_global_batch_norm(model, group) if student.sync_batchnorm else model


def build_sgd(training: TrainingConfig) -> StudentSgd:
    return StudentSgd(build_rate(training), training.num_steps, training.momentum, training.weight_decay)


def build_rate(training: TrainingConfig) -> RateSchedule:
    """The learning rate at each student step. `cosine` falls from `learning_rate` to 0 over the whole run, `drops`
    divides it by ten after each of the given shares of the run."""
    base, total = training.learning_rate, training.num_rounds * training.num_steps
    if training.decay == "constant":
        return lambda step: base
    if training.decay == "drops":
        return lambda step: base * 0.1 ** sum(step >= share * total for share in training.drops)
    return lambda step: base * (1 + cos(pi * step / total)) / 2
