"""From a configuration to the student and its optimiser."""

from math import cos, pi

import torch

from l2t_ray.bilevel.optimizers import Adam, Optimizer, Sgd
from l2t_ray.core.student import RateSchedule, StudentSchedule
from l2t_ray.data.checked import AnyDataset
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Group, UserError
from l2t_ray.parallel.global_batch_norm import with_global_batch_norm
from l2t_ray.settings.experiment import TrainingConfig
from l2t_ray.settings.signature import factory, required, takes
from l2t_ray.settings.student_section import SHAPE, StudentSettings
from l2t_ray.students.initial_weights import begin_with
from l2t_ray.students.initialise import seeded
from l2t_ray.training.arguments import check_castable


def build_student(student: StudentSettings, dataset: AnyDataset, *, group: Group, seed: int) -> torch.nn.Module:
    """The student at its beginning.

    Raises:
        UserError: if it cannot be made for these examples, or its first weights are not in the file that is named.
    """
    make, given = factory(StudentSettings, student.name), dataset.student_arguments
    if of_images := [key for key in required(make) if key in SHAPE and key not in given]:
        raise UserError(
            f"student {student.name!r} is for images, as its {' and '.join(of_images)} say, and {dataset.name} has "
            "none; name another student."
        )

    def build() -> torch.nn.Module:
        model = make(**takes(make, given), **student.options())
        if not isinstance(model, torch.nn.Module):
            kind = type(model).__name__
            raise UserError(f"student {student.name!r} must give a torch.nn.Module, and gives a {kind}; mend it.")
        return model

    try:
        model = seeded(build, torch_seed(seed, "student"))
    except UserError:
        raise
    except Exception as error:  # it is the user's own code that runs here
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"student {student.name!r} cannot be made ({reason}); mend it or its settings.") from error
    if student.initial_weights is not None:
        begin_with(model, student.initial_weights)
    return with_global_batch_norm(model, group) if student.sync_batchnorm else model


def build_autocast(training: TrainingConfig, model: torch.nn.Module, device: torch.device) -> torch.dtype | None:
    """What the student's operations are cast to; None: nothing.

    Raises:
        UserError: if the student or the device are not for that.
    """
    if training.precision == "float32":
        return None
    check_castable(f"training.precision={training.precision}", model, device)
    return torch.bfloat16


def build_schedule(training: TrainingConfig) -> StudentSchedule:
    return StudentSchedule(build_rate(training), training.num_steps, build_optimizer(training))


def build_optimizer(training: TrainingConfig) -> Optimizer:
    if training.optimizer == "sgd":
        return Sgd(training.momentum, training.weight_decay, training.nesterov, training.clip)
    return Adam(
        training.betas,
        training.eps,
        training.weight_decay,
        decoupled=training.optimizer == "adamw",
        clip=training.clip,
        eps_root=training.eps_root,
    )


def build_rate(training: TrainingConfig) -> RateSchedule:
    """The learning rate at each student step. `cosine` falls from `learning_rate` to 0 over the whole run, `drops`
    divides it by ten after each of the given shares of the run."""
    base, total = training.learning_rate, training.num_rounds * training.num_steps
    if training.decay == "constant":
        return lambda step: base
    if training.decay == "drops":
        return lambda step: base * 0.1 ** sum(step >= share * total for share in training.drops)
    return lambda step: base * (1 + cos(pi * step / total)) / 2
