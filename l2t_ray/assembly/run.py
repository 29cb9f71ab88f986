"""All parts of a run, from its configuration."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from l2t_ray.assembly.anchor_sizes import with_anchors
from l2t_ray.assembly.identity import fingerprint, shown_yaml
from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.methods import build_arm
from l2t_ray.assembly.sources import AnySource, source_of
from l2t_ray.assembly.students import build_autocast, build_schedule, build_student
from l2t_ray.assembly.tasks import build_task
from l2t_ray.assembly.teachers import MakeTeacher, build_teacher
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.student import Trainee
from l2t_ray.core.teacher import LocalTeacher
from l2t_ray.data.counted import numpy_generator
from l2t_ray.interfaces import Group, Terms, UserError
from l2t_ray.methods.parts import LossFacts, Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.checkpoint import CheckpointStore
from l2t_ray.training.loop import Run
from l2t_ray.training.mirror import Mirror
from l2t_ray.training.probe import Probe

PROBED = 2_000


def build_run(
    config: ExperimentConfig,
    *,
    group: Group,
    device: torch.device,
    make_teacher: MakeTeacher | None = None,
    run_dir: Path | None = None,
) -> Run:
    """All parts of one worker's run. Its batches, weights and seeds follow from the configuration alone."""
    source = source_of(config, group=group, device=device)
    trainee = build_trainee(config, source, group)
    parts = Parts(trainee, source, config.training.num_rounds, config.seed)
    probe = build_probe(trainee, source, seed=config.seed)
    run = run_of(config, parts, make_teacher or build_teacher, probe)
    return replace(run, trace_dir=run_dir / "profile" if run_dir and config.tracking.profile else None)


def run_of(config: ExperimentConfig, parts: Parts, make_teacher: MakeTeacher, probe: Probe | None = None) -> Run:
    """Every arm of a configuration on parts that there are, whether they come from a configuration or from `fit`."""
    training, trainee = config.training, parts.trainee
    parts = replace(parts, sample=cache(parts.term_sample))
    return Run(
        arms=[build_arm(method, parts, make_teacher, probe) for method in config.arms().values()],
        student=trainee.student,
        task=trainee.task,
        data=parts.source.plain(),
        group=parts.group,
        num_rounds=training.num_rounds,
        num_steps=training.num_steps,
        images_per_round=training.num_steps * training.batch_size,
        eval_every=training.eval_every,
        checkpoint_every=training.checkpoint_every,
        seed=config.seed,
    )


def loss_facts(config: ExperimentConfig, num_classes: int) -> LossFacts:
    """What the loss of a configuration is made for, on a process that trains nothing: the data are opened only for a
    family that asks for a sample of them."""

    @cache
    def parts() -> Parts:
        source = source_of(config)
        return Parts(build_trainee(config, source, SingleProcess()), source, config.training.num_rounds, config.seed)

    @cache
    def sample() -> list[Terms]:
        return parts().term_sample()

    return LossFacts(build_task(config), num_classes, config.seed, sample, class_counts=lambda: parts().class_counts())


def first_teacher(config: ExperimentConfig, num_classes: int) -> LocalTeacher:
    """The teacher of a configuration at its beginning, on a process that trains nothing."""
    return build_teacher(config.method, loss_facts(config, num_classes))


def build_trainee(config: ExperimentConfig, source: AnySource, group: Group) -> Trainee:
    """The student at its beginning, with its task and its optimiser.

    Raises:
        UserError: if it cannot be made, or not be trained in the precision that is set.
    """
    config = with_anchors(config, source.dataset)
    model = build_student(config.student, source.dataset, group=group, seed=config.seed)
    student = FlatModule(model, autocast=build_autocast(config.training, model, source.device))
    return Trainee(student, build_task(config), build_schedule(config.training), group, source.device)


def build_probe(trainee: Trainee, source: AnySource, *, seed: int) -> Probe | None:
    """A probe on `PROBED` of the training images while an arm trains; None where no label is known to be wrong, or a
    label is no answer of the task."""
    corrupted = source.corrupted
    if corrupted is None or corrupted.is_wrong.all() or not trainee.task.row_is_example:
        return None
    chosen = np.sort(numpy_generator(seed, "probe").permutation(len(corrupted.rows))[:PROBED])
    return Probe(trainee.student, trainee.task, source.images(corrupted.rows[chosen]), corrupted.is_wrong[chosen])


def build_store(config: ExperimentConfig, run_dir: Path) -> CheckpointStore:
    """Where the run's checkpoints are kept: they are of this experiment alone.

    Raises:
        UserError: if `storage` is not a place.
    """
    mirror = Mirror.at(config.storage, run_dir.name, "checkpoints") if config.storage else None
    return CheckpointStore(
        run_dir / "checkpoints",
        keep=config.training.keep_checkpoints,
        config=shown_yaml(config),
        fingerprint=fingerprint(config, open_dataset(config.data)),
        mirror=mirror,
    )


def resolve_device(config: ExperimentConfig) -> torch.device:
    """Where a run without Ray computes.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device; set device=cpu or device=auto.")
    is_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")
