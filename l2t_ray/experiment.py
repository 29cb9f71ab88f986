"""From a configuration to the parts of a run: the only place that knows them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.baselines.fixed_loss import FixedLoss
from l2t_ray.baselines.gce import generalised_cross_entropy
from l2t_ray.baselines.glc import GoldLossCorrection, forward_correction
from l2t_ray.baselines.in_turn import MethodInTurn
from l2t_ray.baselines.l2r import L2R
from l2t_ray.baselines.mentornet import MentorNet
from l2t_ray.baselines.mw_net import MWNet
from l2t_ray.baselines.slf import SLF
from l2t_ray.baselines.trainee import RowLoss, Trainee, cross_entropy
from l2t_ray.config import (
    AdamConfig,
    CrossEntropyConfig,
    DataConfig,
    ExperimentConfig,
    ForwardCorrectionConfig,
    GCEConfig,
    GLCConfig,
    L2RConfig,
    L2TDLNConfig,
    LossNetworkConfig,
    LstmConfig,
    MentorNetConfig,
    MethodConfig,
    MWNetConfig,
    SLFConfig,
    StaticDLNConfig,
    StudentConfig,
    TrainingConfig,
)
from l2t_ray.core.flat import FlatModule
from l2t_ray.core.global_batch_norm import with_global_batch_norm
from l2t_ray.core.group import SingleProcess
from l2t_ray.core.hypergrad import hypergradient, naive_hypergradient
from l2t_ray.core.loss_network import DynamicLossNetwork
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN, RateSchedule, Reweighting, StudentSgd
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.core.unroll import InnerProblem
from l2t_ray.data import catalog, label_files, noise, splits
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.counted import numpy_generator, torch_seed
from l2t_ray.data.in_turn import DataInTurn
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.similar import similar_classes
from l2t_ray.data.splits import Policy
from l2t_ray.interfaces import Batch, Data, Group, Method, StudentState, Task, Teacher, UserError
from l2t_ray.students.initialise import seeded
from l2t_ray.students.lenet import LeNet
from l2t_ray.students.resnet import ResNet
from l2t_ray.students.wide_resnet import WideResNet
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.checkpoint import CheckpointStore
from l2t_ray.training.loop import Arm, Run
from l2t_ray.training.mirror import Mirror
from l2t_ray.training.probe import Probe

DEFAULT_ROOT = Path("data")
PROBED = 2_000
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


def build_run(
    config: ExperimentConfig,
    *,
    group: Group,
    device: torch.device,
    make_teacher: MakeTeacher | None = None,
    run_dir: Path | None = None,
) -> Run:
    """All parts of one worker's run. Its batches, weights and seeds follow from the configuration alone."""
    dataset = load_dataset(config.data)
    student = FlatModule(build_student(config.student, dataset, group=group, seed=config.seed))
    training = config.training
    trainee = Trainee(student, Classification(), build_sgd(training), group, device)
    make_teacher = make_teacher or (lambda method, classes: build_teacher(method, classes, seed=config.seed))
    parts = Parts(config, dataset, trainee, group, device, make_teacher)
    parts = replace(parts, probe=build_probe(parts))
    return Run(
        arms=[build_arm(method, parts) for method in config.arms().values()],
        student=student,
        task=trainee.task,
        data=build_data(CrossEntropyConfig(), parts),
        group=group,
        num_rounds=training.num_rounds,
        num_steps=training.num_steps,
        images_per_round=training.num_steps * training.batch_size,
        eval_every=training.eval_every,
        checkpoint_every=training.checkpoint_every,
        trace_dir=run_dir / "profile" if run_dir and config.tracking.profile else None,
    )


def build_arm(method: MethodConfig, parts: Parts) -> Arm:
    """A method ready to be trained, on its data."""
    data = build_data(method, parts)
    if isinstance(method, L2TDLNConfig):
        if method.reweight is not None:
            check_centers(parts)
        teacher = parts.make_teacher(method, parts.dataset.num_classes)
        trainee = parts.trainee
        l2t_dln = build_l2t_dln(
            method, trainee.student, trainee.task, data, teacher, trainee.sgd, parts.group, parts.device
        )
        ending = ending_of(method, parts, learned_loss(method, teacher, parts))
        return Arm(method.arm, in_turn(l2t_dln, ending, method, parts), teacher, data, parts.probe)
    loss = fixed_loss(method, parts)
    baseline = build_baseline(method, data, parts) if loss is None else FixedLoss(parts.trainee, loss)
    ending = ending_of(method, parts, loss)
    return Arm(method.arm, in_turn(baseline, ending, method, parts), data=data, probe=parts.probe)


def in_turn(method: Method, ending: Method | None, settings: MethodConfig, parts: Parts) -> Method:
    return method if ending is None else MethodInTurn(method, ending, switch=ending_start(settings, parts))


def ending_of(method: MethodConfig, parts: Parts, loss: RowLoss | None) -> Method | None:
    """What the last rounds do with clean images, where the configuration gives them to the student.

    Their loss is plain cross-entropy: one that was learned to distrust labels would learn too little from them.

    Raises:
        UserError: if noisy images are to go on under the method's loss, and it has none.
    """
    if method.clean_images == "fine_tuned":
        return FixedLoss(parts.trainee, cross_entropy)
    if method.clean_images != "trusted":
        return None
    if loss is None:
        raise UserError(
            f"clean_images 'trusted' needs a method with a loss of its own, and {method.name!r} has none; "
            "set clean_images=mixed or fine_tuned."
        )
    return FixedLoss(parts.trainee, loss, is_clean=clean_images(parts))


def ending_start(method: MethodConfig, parts: Parts) -> int:
    share = method.fine_tuning_share if method.clean_images == "fine_tuned" else method.trusted_share
    num_rounds = parts.config.training.num_rounds
    return num_rounds - rounds_of(share, num_rounds)


def clean_images(parts: Parts) -> Bool[Tensor, " images"]:
    """By image of the training set, whether it is one of the validation images, which are the same in every epoch."""
    is_clean = torch.zeros(len(parts.dataset.train), dtype=torch.bool)
    is_clean[torch.from_numpy(build_policy(parts.config, parts.dataset).at(0).validation)] = True
    return is_clean.to(parts.device)


def learned_loss(method: L2TDLNConfig, teacher: Teacher, parts: Parts) -> RowLoss:
    """The loss network as the teacher has it at the time."""
    network = bare_loss_network(method.loss_network, parts.dataset.num_classes).to(parts.device)
    return lambda logits, labels: network.losses_at(teacher.read().phi.to(logits), logits, labels)


def fixed_loss(method: MethodConfig, parts: Parts) -> RowLoss | None:
    """The loss of a method that has a fixed one."""
    match method:
        case CrossEntropyConfig():
            return cross_entropy
        case GCEConfig():
            return generalised_cross_entropy(method.q)
        case StaticDLNConfig():
            network = build_loss_network(method.loss_network, parts.dataset.num_classes, seed=parts.config.seed)
            return network.requires_grad_(False).to(parts.device).losses
        case ForwardCorrectionConfig():
            _, matrix = observed_labels(parts.config, parts.dataset)
            return forward_correction(torch.from_numpy(matrix).to(parts.device))
    return None


def check_centers(parts: Parts) -> None:
    """Refuses data reweighting where the first class centres would lack a class: random divisions are not balanced.

    Raises:
        UserError: naming the class.
    """
    dataset, data = parts.dataset, parts.config.data
    labels = dataset.train.labels if data.validation_labels == "clean" else observed_labels(parts.config, dataset)[0]
    present = labels[build_policy(parts.config, dataset).at(0).validation]
    absent = np.setdiff1d(np.arange(dataset.num_classes), present)
    if len(absent):
        raise UserError(
            f"method.reweight needs each class among the validation images, and class {absent[0]} "
            f"({dataset.train.class_names[absent[0]]}) is not; enlarge data.num_validation or set data.split=fixed."
        )


def build_baseline(method: MethodConfig, data: Data, parts: Parts) -> Method:
    """Any method but L2T-DLN and those with a fixed loss."""
    config, trainee = parts.config, parts.trainee
    num_classes, num_rounds, seed = parts.dataset.num_classes, config.training.num_rounds, config.seed
    match method:
        case GLCConfig():
            warm_rounds = rounds_of(method.warm_share, num_rounds)
            return GoldLossCorrection(
                trainee, data, clean_images(parts), warm_rounds=warm_rounds, restarts=method.restarts
            )
        case MWNetConfig():
            return MWNet(
                trainee,
                hidden=method.hidden,
                learning_rate=method.learning_rate,
                weight_decay=method.weight_decay,
                seed=torch_seed(seed, "mw_net"),
            )
        case MentorNetConfig():
            return MentorNet(
                trainee,
                data,
                torch.from_numpy(observed_labels(config, parts.dataset)[0]),
                num_rounds=num_rounds,
                curriculum=method.curriculum,
                percentile=method.percentile,
                decay=method.decay,
                burn_in=method.burn_in,
                gamma=method.gamma,
                dropout=(method.dropout_first, method.dropout_rest),
                fit_steps=method.fit_steps,
                seed=seed,
            )
        case L2RConfig():
            return L2R(
                trainee,
                num_features=num_features(trainee, parts.dataset),
                num_classes=num_classes,
                num_rounds=num_rounds,
                hidden=method.hidden,
                label_size=method.label_size,
                learning_rate=method.learning_rate,
                horizon=method.horizon,
                engine=method.engine,
                seed=torch_seed(seed, "l2r"),
            )
        case SLFConfig():
            return SLF(
                trainee,
                num_classes=num_classes,
                num_rounds=num_rounds,
                mode=method.mode,
                hidden=method.hidden,
                learning_rate=method.learning_rate,
                temperatures=(method.temperature_start, method.temperature_end),
                scale_decay=method.scale_decay,
                seed=seed,
            )
    raise AssertionError(f"no baseline is called {method.name!r}")


@torch.no_grad()
def num_features(trainee: Trainee, dataset: Dataset) -> int:
    """Length of the features that the student gives with its logits."""
    initial, shape = trainee.initial(), dataset.train.images.shape[1:]
    image = torch.zeros(1, *shape, device=trainee.device)
    return trainee.student(initial.theta, initial.buffers, image, with_embedding=True, training=False)[1].shape[1]


def rounds_of(share: float, num_rounds: int) -> int:
    """That share of the rounds, but neither none nor all of them where there are two or more."""
    return max(1, min(num_rounds - 1, round(share * num_rounds)))


def build_store(config: ExperimentConfig, run_dir: Path) -> CheckpointStore:
    """Where the run's checkpoints are kept.

    Raises:
        UserError: if `storage` is not a place.
    """
    mirror = Mirror.at(config.storage, run_dir.name, "checkpoints") if config.storage else None
    return CheckpointStore(
        run_dir / "checkpoints", keep=config.training.keep_checkpoints, config=config.to_yaml(), mirror=mirror
    )


def load_dataset(data: DataConfig) -> Dataset:
    return catalog.load(
        data.name,
        root=data.root or DEFAULT_ROOT,
        verify=data.verify,
        download=data.download,
        image_size=data.image_size,
    )


def build_data(method: MethodConfig, parts: Parts) -> Data:
    """The batches that a method is given: what it may do with the validation images beyond looking at them."""
    policy = build_policy(parts.config, parts.dataset)
    num_rounds = parts.config.training.num_rounds
    plain = build_loader(parts, policy)
    if method.clean_images == "judge":
        return plain
    trained_on = splits.validation_alone(policy) if method.clean_images == "fine_tuned" else splits.mixed(policy)
    with_clean = build_loader(parts, trained_on, trains_on_validation=True)
    if isinstance(method, GLCConfig):
        return DataInTurn(plain, with_clean, switch=rounds_of(method.warm_share, num_rounds))
    if method.clean_images == "mixed":
        return with_clean
    return DataInTurn(plain, with_clean, switch=ending_start(method, parts))


def build_policy(config: ExperimentConfig, dataset: Dataset) -> Policy:
    data = config.data
    if dataset.validation is not None:
        if data.split == "redivide":
            raise UserError(
                "data.split is 'redivide', but validation images were set apart below data.root; set data.split=fixed."
            )
        return splits.given(
            dataset.train.labels,
            dataset.validation,
            config.seed,
            num_train=data.num_train,
            class_names=dataset.train.class_names,
        )
    divide = splits.fixed if data.split == "fixed" else splits.redivided
    return divide(
        dataset.train.labels,
        data.num_validation,
        config.seed,
        num_train=data.num_train,
        class_names=dataset.train.class_names,
    )


def build_loader(parts: Parts, policy: Policy, *, trains_on_validation: bool = False) -> RoundLoader:
    """Batches of the images that `policy` gives; validation images that are trained on keep their validation labels."""
    config, dataset = parts.config, parts.dataset
    data, training = config.data, config.training
    observed, _ = observed_labels(config, dataset)
    if trains_on_validation and data.validation_labels == "clean":
        validation = policy.at(0).validation
        observed = observed.copy()
        observed[validation] = dataset.train.labels[validation]
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
        observed_labels=observed,
        validation_labels=data.validation_labels,
        rank=parts.group.rank,
        world_size=parts.group.size,
        device=parts.device,
        augment=data.augment,
        padding_mode=data.crop_padding,
        augment_validation=data.augment_validation,
    )


def observed_labels(config: ExperimentConfig, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The training labels as the student sees them, and the matrix of the noise: row the class, column the label.

    Labels that were brought as a file have the matrix that they show.

    Raises:
        UserError: if a file does not fit the data set, or the data set has no such noise.
    """
    labels, num_classes = dataset.train.labels, dataset.num_classes
    setting, seed = config.data.noise, config.seed
    match setting.kind:
        case "none":
            return labels, np.eye(num_classes)
        case "flip_to_two":
            return noise.flip_to_two(labels, setting.rate, num_classes, seed)
        case "flip_to_one":
            return noise.flip_to_one(labels, setting.rate, num_classes, seed)
        case "uniform":
            return noise.uniform(labels, setting.rate, num_classes, seed)
        case "flip_to_similar":
            similar = similar_classes(dataset.name)
            if similar is None:
                raise UserError(
                    f"data.noise.kind=flip_to_similar knows cifar10 and cifar100 alone, not {dataset.name}; "
                    "give a transition matrix of your own with data.noise.kind=matrix."
                )
            return noise.flip_to_similar(labels, setting.rate, similar, seed)
        case "matrix":
            assert setting.file is not None
            matrix = label_files.read_matrix(setting.file, num_classes, column=setting.column)
            return noise.apply_transition(labels, matrix, seed), matrix
        case "labels":
            assert setting.file is not None
            num_own = None if dataset.validation is None else len(labels) - len(dataset.validation)
            observed = label_files.read_labels(setting.file, dataset.train, column=setting.column, num_own=num_own)
            return observed, noise.realised(labels, observed, num_classes)


@dataclass(frozen=True)
class CorruptedLabels:
    """The training images whose labels are wrong, and what the noise is in numbers."""

    rows: Int[np.ndarray, " n"]
    """The training part (of the first epoch, where it changes)."""
    is_wrong: Bool[np.ndarray, " n"]
    matrix: Float[np.ndarray, "c c"]
    """As drawn from; as it shows, where labels were brought as a file."""
    realised: Float[np.ndarray, "c c"]

    @property
    def rate(self) -> float:
        return float(self.is_wrong.mean())


def corrupted_labels(config: ExperimentConfig, dataset: Dataset) -> CorruptedLabels | None:
    """None where no label of the training part is wrong."""
    observed, matrix = observed_labels(config, dataset)
    rows = build_policy(config, dataset).at(0).train
    clean = dataset.train.labels[rows]
    is_wrong = observed[rows] != clean
    if not is_wrong.any():
        return None
    return CorruptedLabels(rows, is_wrong, matrix, noise.realised(clean, observed[rows], dataset.num_classes))


def build_probe(parts: Parts) -> Probe | None:
    """A look at `PROBED` of the training images while an arm trains; None where there is nothing wrong to see."""
    corrupted = corrupted_labels(parts.config, parts.dataset)
    if corrupted is None or corrupted.is_wrong.all():
        return None
    chosen = np.sort(numpy_generator(parts.config.seed, "probe").permutation(len(corrupted.rows))[:PROBED])
    batches = build_loader(parts, build_policy(parts.config, parts.dataset)).training_images(corrupted.rows[chosen])
    return Probe(parts.trainee.student, batches, corrupted.is_wrong[chosen])


@dataclass(frozen=True)
class Closing:
    """What a trained student does: test images by class and answer, and the wrong labels that it gives back."""

    confusion: Int[np.ndarray, "c c"]
    reproduced: float | None


@torch.no_grad()
def closing_look(
    config: ExperimentConfig, students: Mapping[str, StudentState], device: torch.device
) -> dict[str, Closing]:
    """A look at each trained student, on all test images and all training images with wrong labels."""
    config = config.model_copy(update={"controls": (), "method": CrossEntropyConfig()})
    run = build_run(config, group=SingleProcess(), device=device)
    assert isinstance(run.data, RoundLoader)
    num_classes = run.data.num_classes
    corrupted = corrupted_labels(config, run.data.dataset)
    looks = {}
    for arm, state in students.items():
        theta = state.theta.to(device)
        buffers = {name: buffer.to(device) for name, buffer in state.buffers.items()}

        def answers(batch: Batch, theta=theta, buffers=buffers) -> torch.Tensor:
            return run.student(theta, buffers, batch.inputs, training=False).argmax(dim=1)

        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        for batch in run.data.test():
            np.add.at(confusion, (batch.targets.cpu().numpy(), answers(batch).cpu().numpy()), 1)
        reproduced = None
        if corrupted is not None:
            batches = run.data.training_images(corrupted.rows[corrupted.is_wrong])
            reproduced = torch.cat([answers(batch) == batch.targets for batch in batches]).double().mean().item()
        looks[arm] = Closing(confusion, reproduced)
    return looks


def build_student(student: StudentConfig, dataset: Dataset, *, group: Group, seed: int) -> torch.nn.Module:
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


def build_l2t_dln(
    method: L2TDLNConfig,
    student: FlatModule,
    task: Task,
    data: Data,
    teacher: Teacher,
    sgd: StudentSgd,
    group: Group,
    device: torch.device,
) -> Method:
    reweight = method.reweight
    return L2TDLN(
        student,
        task,
        data,
        bare_loss_network(method.loss_network, data.num_classes),
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
            rule = build_adam(teacher, phi.numel())
        case LstmConfig():
            rule = LstmRule(
                LSTMTeacher(teacher.cells, head=teacher.head, seed=torch_seed(seed, "teacher")),
                phi.numel(),
                step_size=teacher.step_size,
                learning_rate=teacher.learning_rate,
                horizon=teacher.horizon,
                clip=teacher.clip,
                base=teacher.base and build_adam(teacher.base, phi.numel()),
            )
    return LocalTeacher(phi, rule)


def build_adam(adam: AdamConfig, num_weights: int) -> AdamRule:
    return AdamRule(num_weights, step_size=adam.step_size, clip=adam.clip)


def check_hypergradient(config: ExperimentConfig) -> tuple[dict[str, float], bool]:
    """Relative errors of the engine in use on the first real round, against naive autograd in float64.

    Returns:
        `float64`: the engine in double precision; `float32`: as it is used. And whether the engine is an exact one,
        which is not to differ in double precision by more than rounding.

    Raises:
        UserError: if the method has no hypergradient.
    """
    method = config.method
    if not isinstance(method, L2TDLNConfig):
        raise UserError(f"--check-hypergradient needs method.name=l2t_dln, got {method.name!r}.")
    group, device = SingleProcess(), torch.device("cpu")
    run = build_run(config.model_copy(update={"controls": ()}), group=group, device=device)
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
    is_exact = method.horizon is None and engine not in ("one_step", "finite_difference")
    errors = {
        name: ((at(problem, is_double=name == "float64", is_naive=False) - reference).norm() / reference.norm()).item()
        for name in ("float64", "float32")
    }
    return errors, is_exact


def resolve_device(config: ExperimentConfig) -> torch.device:
    """Where a run without Ray computes.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device; set device=cpu or device=auto.")
    is_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def data_root(environment: str | None, configured: Path | None) -> Path:
    """Where the image files are: as configured, or else as the environment (L2T_DATA) says."""
    return configured or (Path(environment) if environment else DEFAULT_ROOT)
