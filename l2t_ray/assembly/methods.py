"""From a configuration to a method that is ready to be trained."""

import logging

import numpy as np
import torch
from torch import Tensor

from l2t_ray.assembly.images import build_loader, build_policy, clean_images, observed_labels, training_data
from l2t_ray.assembly.parts import Parts, ending_start, estimate_rounds, warm_rounds
from l2t_ray.assembly.students import num_features
from l2t_ray.assembly.teachers import bare_loss_network, build_loss_network
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.noise_estimate import estimate_noise
from l2t_ray.core.objective import LearnedObjective, shifted
from l2t_ray.core.reweight import ClassCenters, Reweighting
from l2t_ray.core.student import RowLoss, cross_entropy
from l2t_ray.data.counted import torch_seed
from l2t_ray.interfaces import Data, Method, MethodState, StudentState, Teacher, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.gce import generalised_cross_entropy
from l2t_ray.methods.glc import ForwardCorrected, forward_correction
from l2t_ray.methods.l2r import L2R
from l2t_ray.methods.mentornet import MentorNet
from l2t_ray.methods.mw_net import MWNet
from l2t_ray.methods.phases import Phase, PhasedData, Phases
from l2t_ray.methods.slf import SLF
from l2t_ray.methods.static_dln import StaticDLN
from l2t_ray.settings.experiment import (
    CrossEntropyConfig,
    ForwardCorrectionConfig,
    GCEConfig,
    GLCConfig,
    L2RConfig,
    L2TDLNConfig,
    MentorNetConfig,
    MethodConfig,
    MWNetConfig,
    SLFConfig,
    StaticDLNConfig,
)
from l2t_ray.training.loop import Arm

_LOG = logging.getLogger(__name__)


def build_arm(method: MethodConfig, parts: Parts) -> Arm:
    """A method ready to be trained, on its data, in its phases."""
    teacher = parts.make_teacher(method, parts.dataset.num_classes) if isinstance(method, L2TDLNConfig) else None
    phases = phases_of(method, teacher, parts)
    if len(phases) == 1:
        return Arm(method.arm, phases[0].method, teacher, phases[0].data, parts.probe)
    return Arm(method.arm, Phases(phases), teacher, PhasedData(phases), parts.probe)


def phases_of(method: MethodConfig, teacher: Teacher | None, parts: Parts) -> list[Phase]:
    """The whole training: warm-up where there is one, the method itself, and what the clean images are for at the end.

    Raises:
        UserError: if noisy images are to go on under the method's loss at the end, and it has none.
    """
    main, with_clean = training_data(method, parts)
    if isinstance(method, GLCConfig):
        return glc_phases(method, main, with_clean, parts)
    if isinstance(method, L2TDLNConfig | StaticDLNConfig):
        phases = learned_phases(method, teacher, main, with_clean, parts)
        if method.clean_images == "trusted":
            return phases  # the clean images are among the method's own batches, so that the loss goes on
    else:
        loss = fixed_loss(method, parts)
        baseline = build_baseline(method, main, parts) if loss is None else FixedLoss(parts.trainee, loss)
        phases = [Phase(0, baseline, with_clean if method.clean_images == "mixed" else main)]
    if method.clean_images in ("judge", "mixed"):
        return phases
    return [*phases, Phase(ending_start(method, parts), ending_of(method, parts), with_clean)]


def learned_phases(
    method: L2TDLNConfig | StaticDLNConfig, teacher: Teacher | None, main: Data, with_clean: Data, parts: Parts
) -> list[Phase]:
    """A learned loss, after its warm-up, and begun anew with each estimate of the label noise."""
    trainee, num_rounds = parts.trainee, parts.config.training.num_rounds
    memory = Memory(trainee, len(parts.dataset.train), main.num_classes)
    has_memory, has_channel = method.loss_network.memory is not None, method.loss_network.label_entries == "channel"
    warm = warm_rounds(method, num_rounds)
    objective = objective_of(method, main, memory, parts, has_offset=bool(warm) and has_channel)
    learner = StaticDLN(objective) if isinstance(method, StaticDLNConfig) else taught(method, objective, teacher)
    if teacher is None and method.clean_images == "trusted" and not warm:  # as any other fixed loss
        return [Phase(0, learner, main), Phase(ending_start(method, parts), learner, with_clean)]
    own = with_clean if method.clean_images in ("mixed", "trusted") else main
    if not warm:
        return [Phase(0, learner, own)]
    warm_data = own if method.clean_images == "mixed" else main
    warm_up = Phase(0, FixedLoss(trainee, cross_entropy, memory=memory if has_memory else None), warm_data)
    if not has_channel:
        return [warm_up, Phase(warm, learner, own)]

    loss = objective.loss
    assert isinstance(loss, PairLoss)

    def with_estimate(state: MethodState, index: int) -> MethodState:
        phi = (objective.initial_phi() if teacher is None else teacher.read().phi).to(parts.device)
        channel = estimated_channel(state.student, parts, main.epoch(index))
        return shifted(state, loss.shift_to(channel, phi))

    return [warm_up, *(Phase(first, learner, own, with_estimate) for first in estimate_rounds(method, num_rounds))]


def glc_phases(method: GLCConfig, main: Data, with_clean: Data, parts: Parts) -> list[Phase]:
    corrected = ForwardCorrected(parts.trainee, main, clean_images(parts), restarts=method.restarts)
    switch = warm_rounds(method, parts.config.training.num_rounds)
    warm_up = Phase(0, FixedLoss(parts.trainee, cross_entropy), main)
    return [warm_up, Phase(switch, corrected, with_clean, corrected.begin)]


def objective_of(
    method: L2TDLNConfig | StaticDLNConfig, data: Data, memory: Memory, parts: Parts, *, has_offset: bool
) -> LearnedObjective:
    reweight = method.reweight if isinstance(method, L2TDLNConfig) else None
    if reweight is not None:
        check_centers(parts)
    if isinstance(method, StaticDLNConfig):
        network = build_loss_network(method.loss_network, data.num_classes, seed=parts.config.seed)
    else:
        network = bare_loss_network(method.loss_network, data.num_classes)
    settings = reweight and Reweighting(reweight.metric, reweight.positive, reweight.refresh_every)
    return LearnedObjective(
        parts.trainee,
        PairLoss(network, parts.trainee.task),
        has_offset=has_offset,
        memory=memory,
        centers=settings and ClassCenters(settings, parts.trainee, data),
        is_clean=clean_images(parts) if method.clean_images == "trusted" else None,
    )


def taught(method: L2TDLNConfig, objective: LearnedObjective, teacher: Teacher | None) -> L2TDLN:
    assert teacher is not None
    return L2TDLN(
        objective,
        teacher,
        schedule=method.schedule,
        engine=method.engine,
        horizon=method.horizon,
        keeps_buffers=method.batch_norm_buffers == "kept",
    )


@torch.no_grad()
def estimated_channel(student: StudentState, parts: Parts, epoch: int) -> Tensor:
    """The label noise `[C, C]` that this student shows, estimated by one worker for all."""
    config, dataset, trainee, group = parts.config, parts.dataset, parts.trainee, parts.group
    if group.rank != 0:
        return group.sum(torch.zeros(dataset.num_classes, dataset.num_classes, device=parts.device))
    policy = build_policy(config, dataset)
    loader, split = build_loader(parts, policy), policy.at(epoch)
    observed, _ = observed_labels(config, dataset)
    judged = dataset.train.labels if config.data.validation_labels == "clean" else observed

    def embeddings(rows: np.ndarray) -> Tensor:
        return torch.cat([trainee.features(student, batch) for batch in loader.training_images(rows)])

    def on_device(labels: np.ndarray) -> Tensor:
        return torch.tensor(labels, device=parts.device)

    estimate = estimate_noise(
        embeddings(split.validation),
        on_device(judged[split.validation]),
        embeddings(split.train),
        on_device(observed[split.train]),
        num_classes=dataset.num_classes,
    )
    _LOG.info("label noise: %s", estimate)
    return group.sum(estimate.channel.to(student.theta))


def ending_of(method: MethodConfig, parts: Parts) -> Method:
    """What the last rounds do with clean images, where the configuration gives them to the student.

    Their loss is plain cross-entropy: one that was learned to distrust labels would learn too little from them.

    Raises:
        UserError: if noisy images are to go on under the method's loss, and it has none.
    """
    if method.clean_images == "fine_tuned":
        return FixedLoss(parts.trainee, cross_entropy)
    loss = fixed_loss(method, parts)
    if loss is None:
        raise UserError(
            f"clean_images 'trusted' needs a method with a loss of its own, and {method.name!r} has none; "
            "set clean_images=mixed or fine_tuned."
        )
    return FixedLoss(parts.trainee, loss, is_clean=clean_images(parts))


def fixed_loss(method: MethodConfig, parts: Parts) -> RowLoss | None:
    """The loss of a method that has a fixed one."""
    match method:
        case CrossEntropyConfig():
            return cross_entropy
        case GCEConfig():
            return generalised_cross_entropy(method.q)
        case ForwardCorrectionConfig():
            _, matrix = observed_labels(parts.config, parts.dataset)
            return forward_correction(torch.from_numpy(matrix).to(parts.device))
    return None


def build_baseline(method: MethodConfig, data: Data, parts: Parts) -> Method:
    """Any method but those with a loss network and those with a fixed loss."""
    config, trainee = parts.config, parts.trainee
    num_classes, num_rounds, seed = parts.dataset.num_classes, config.training.num_rounds, config.seed

    match method:
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
                torch.tensor(observed_labels(config, parts.dataset)[0]),
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
