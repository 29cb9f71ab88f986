"""From a configuration to the parts of a run: the only place that knows them all."""

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import numpy as np
import torch

from l2t_ray.baselines.cross_entropy import CrossEntropy
from l2t_ray.config import (
    AdamConfig,
    CrossEntropyConfig,
    DataConfig,
    ExperimentConfig,
    L2TDLNConfig,
    LossNetworkConfig,
    LstmConfig,
    StudentConfig,
    TrainingConfig,
)
from l2t_ray.core.flat import FlatModule
from l2t_ray.core.hypergrad import hypergradient, naive_hypergradient
from l2t_ray.core.loss_network import DynamicLossNetwork
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN, RateSchedule, Reweighting, StudentSgd
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.core.unroll import InnerProblem
from l2t_ray.data import catalog, noise, splits
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.counted import torch_seed
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.interfaces import Batch, Group, Method, StudentState, Task, Teacher, UserError
from l2t_ray.students.initialise import seeded
from l2t_ray.students.lenet import LeNet
from l2t_ray.students.resnet import ResNet
from l2t_ray.students.wide_resnet import WideResNet
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.loop import Arm, Run

MakeTeacher = Callable[[L2TDLNConfig, int], Teacher]
"""`(method, number of classes) -> its teacher`: local, or a line to the teacher actor."""


def build_run(
    config: ExperimentConfig, *, group: Group, device: torch.device, make_teacher: MakeTeacher | None = None
) -> Run:
    """All parts of one worker's run. Its batches, weights and seeds follow from the configuration alone."""
    dataset = load_dataset(config.data)
    loader = build_loader(config, dataset, group=group, device=device)
    num_classes = dataset.num_classes
    student = FlatModule(build_student(config.student, dataset, seed=config.seed))
    task = Classification()
    sgd = build_sgd(config.training)
    make_teacher = make_teacher or (lambda method, classes: build_teacher(method, classes, seed=config.seed))

    def arm(name: str, method: L2TDLNConfig | CrossEntropyConfig) -> Arm:
        if isinstance(method, CrossEntropyConfig):
            return Arm(name, CrossEntropy(student, task, sgd, group, device=device))
        teacher = make_teacher(method, num_classes)
        return Arm(name, build_l2t_dln(method, student, task, loader, teacher, sgd, group, device), teacher)

    training = config.training
    return Run(
        arms=[arm(name, method) for name, method in config.arms().items()],
        student=student,
        task=task,
        data=loader,
        group=group,
        num_rounds=training.num_rounds,
        num_steps=training.num_steps,
        images_per_round=training.num_steps * training.batch_size,
        eval_every=training.eval_every,
        checkpoint_every=training.checkpoint_every,
    )


def load_dataset(data: DataConfig) -> Dataset:
    return catalog.load(data.name, root=data.root, verify=data.verify, download=data.download)


def build_loader(
    config: ExperimentConfig, dataset: Dataset, *, group: Group, device: torch.device | str
) -> RoundLoader:
    data, training = config.data, config.training
    labels = dataset.train.labels
    divide = splits.fixed if data.split == "fixed" else splits.redivided
    policy = divide(
        labels,
        data.num_validation,
        config.seed,
        num_train=data.num_train,
        class_names=dataset.train.class_names,
    )
    sampler = RoundSampler(
        policy,
        seed=config.seed,
        num_steps=training.num_steps,
        train_batch=training.batch_size,
        val_batch=training.val_batch_size,
        at_pass_end=data.at_pass_end,
    )
    return RoundLoader(
        dataset,
        sampler,
        seed=config.seed,
        observed_labels=observed_labels(config, labels, dataset.num_classes),
        validation_labels=data.validation_labels,
        rank=group.rank,
        world_size=group.size,
        device=device,
        augment=data.augment,
        padding_mode=data.crop_padding,
        augment_validation=data.augment_validation,
    )


def observed_labels(config: ExperimentConfig, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The training labels as the student sees them."""
    kind, rate = config.data.noise.kind, config.data.noise.rate
    if kind == "none":
        return labels
    corrupt = {"flip_to_two": noise.flip_to_two, "flip_to_one": noise.flip_to_one, "uniform": noise.uniform}[kind]
    return corrupt(labels, rate, num_classes, config.seed)[0]


def build_student(student: StudentConfig, dataset: Dataset, *, seed: int) -> torch.nn.Module:
    _, channels, image_size, _ = dataset.train.images.shape
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

    return seeded(build, torch_seed(seed, "student"))


def build_sgd(training: TrainingConfig) -> StudentSgd:
    return StudentSgd(build_rate(training), training.num_steps, training.momentum, training.weight_decay)


def build_rate(training: TrainingConfig) -> RateSchedule:
    """The learning rate at each student step. `cosine` falls from `learning_rate` to 0 over the whole run."""
    base, total = training.learning_rate, training.num_rounds * training.num_steps
    if training.decay == "constant":
        return lambda step: base
    return lambda step: base * (1 + cos(pi * step / total)) / 2


def build_l2t_dln(
    method: L2TDLNConfig,
    student: FlatModule,
    task: Task,
    loader: RoundLoader,
    teacher: Teacher,
    sgd: StudentSgd,
    group: Group,
    device: torch.device,
) -> Method:
    reweight = method.reweight
    return L2TDLN(
        student,
        task,
        loader,
        bare_loss_network(method.loss_network, loader.num_classes),
        teacher,
        sgd,
        group,
        schedule=method.schedule,
        engine=method.engine,
        horizon=method.horizon,
        reweighting=reweight and Reweighting(reweight.metric, reweight.positive, reweight.refresh_every),
        keeps_buffers=method.batch_norm_buffers == "kept",
        device=device,
    )


def build_loss_network(loss: LossNetworkConfig, num_classes: int, *, seed: int) -> DynamicLossNetwork:
    return DynamicLossNetwork(
        loss.hidden,
        loss.layers,
        loss.init,
        pairs=loss.pairs,
        activation=loss.activation,
        label_table=num_classes if loss.label_entries == "table" else None,
        mean=loss.mean,
        seed=torch_seed(seed, "loss network"),
    )


def bare_loss_network(loss: LossNetworkConfig, num_classes: int) -> DynamicLossNetwork:
    """The architecture alone: its weights are the teacher's to say, so none are fitted."""
    return build_loss_network(loss.model_copy(update={"init": "released"}), num_classes, seed=0)


def build_teacher(method: L2TDLNConfig, num_classes: int, *, seed: int) -> LocalTeacher:
    """A teacher at its beginning, with the loss network's first weights."""
    phi = build_loss_network(method.loss_network, num_classes, seed=seed).phi.detach()
    teacher = method.teacher
    match teacher:
        case AdamConfig():
            rule = AdamRule(phi.numel(), step_size=teacher.step_size)
        case LstmConfig():
            rule = LstmRule(
                LSTMTeacher(teacher.cells, head=teacher.head, seed=torch_seed(seed, "teacher")),
                phi.numel(),
                step_size=teacher.step_size,
                learning_rate=teacher.learning_rate,
                horizon=teacher.horizon,
            )
    return LocalTeacher(phi, rule)


def check_hypergradient(config: ExperimentConfig) -> dict[str, float]:
    """Relative errors of the engine in use on the first real round, against naive autograd in float64.

    Returns:
        `float64`: the engine in double precision (should be rounding, 1e-10 or less); `float32`: as it is used.

    Raises:
        UserError: if the method has no hypergradient.
    """
    from l2t_ray.core.group import SingleProcess

    method = config.method
    if not isinstance(method, L2TDLNConfig):
        raise UserError(f"--check-hypergradient needs method.name=l2t_dln, got {method.name!r}.")
    group, device = SingleProcess(), torch.device("cpu")
    run = build_run(config.model_copy(update={"control": None}), group=group, device=device)
    arm = run.arms[0]
    assert isinstance(arm.method, L2TDLN) and arm.teacher is not None
    problem, phi = arm.method.problem, arm.teacher.read().phi
    engine = "store" if method.engine == "auto" else method.engine
    student, batches = arm.method.init().student, run.data.round(0)
    rates = build_sgd(config.training).rates(0, len(batches.train))

    def in_double(batch: Batch) -> Batch:
        return batch._replace(inputs=batch.inputs.double(), weights=batch.weights.double())

    def at(problem: InnerProblem, is_double: bool, is_naive: bool) -> torch.Tensor:
        start, weights, train, val = student, phi, list(batches.train), batches.val
        if is_double:
            buffers = {name: b.double() if b.is_floating_point() else b for name, b in student.buffers.items()}
            start = StudentState(student.theta.double(), student.velocity.double(), buffers)
            weights, train, val = phi.double(), [in_double(batch) for batch in train], in_double(val)
        if is_naive:
            return naive_hypergradient(problem, start, weights, train, val, rates=rates).gradient
        return hypergradient(
            problem, start, weights, train, val, rates=rates, engine=engine, horizon=method.horizon
        ).gradient.double()

    problem = replace(problem, reweigh=None)  # sample weights are constants for both sides
    reference = at(problem, is_double=True, is_naive=True)
    return {
        name: ((at(problem, is_double=name == "float64", is_naive=False) - reference).norm() / reference.norm()).item()
        for name in ("float64", "float32")
    }


def resolve_device(config: ExperimentConfig) -> torch.device:
    """Where a run without Ray computes.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device; set device=cpu or device=auto.")
    is_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def default_data_root(environment: str | None, configured: Path) -> Path:
    """L2T_DATA stands in for the default root; a root that is named in the configuration wins."""
    return Path(environment) if environment and configured == DataConfig().root else configured
