"""From a configuration to a method that is ready to be trained."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from l2t_ray.baselines.fixed_loss import FixedLoss
from l2t_ray.baselines.gce import generalised_cross_entropy
from l2t_ray.baselines.glc import GoldLossCorrection, forward_correction
from l2t_ray.baselines.in_turn import MethodInTurn
from l2t_ray.baselines.l2r import L2R
from l2t_ray.baselines.mentornet import MentorNet
from l2t_ray.baselines.mw_net import MWNet
from l2t_ray.baselines.slf import SLF
from l2t_ray.baselines.trainee import RowLoss, cross_entropy
from l2t_ray.config import (
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
from l2t_ray.core.loss_network import started_at
from l2t_ray.core.meta_step import L2TDLN, Reweighting, WarmUp
from l2t_ray.core.noise_estimate import noise_channel
from l2t_ray.data.counted import torch_seed
from l2t_ray.experiment.images import build_data, build_loader, build_policy, clean_images, observed_labels
from l2t_ray.experiment.parts import Parts, ending_start, estimate_rounds, warm_rounds
from l2t_ray.experiment.students import num_features
from l2t_ray.experiment.teachers import bare_loss_network, build_loss_network
from l2t_ray.interfaces import Batch, Data, Method, StudentState, Teacher, UserError
from l2t_ray.training.loop import Arm


def build_arm(method: MethodConfig, parts: Parts) -> Arm:
    """A method ready to be trained, on its data."""
    data = build_data(method, parts)
    if isinstance(method, L2TDLNConfig | StaticDLNConfig):
        is_taught = isinstance(method, L2TDLNConfig)
        teacher = parts.make_teacher(method, parts.dataset.num_classes) if is_taught else None
        l2t_dln = build_l2t_dln(method, data, teacher, parts)
        # `trusted` images are among its own batches, so that the loss goes on.
        ending = None if method.clean_images == "trusted" else ending_of(method, parts, None)
        return Arm(method.arm, in_turn(l2t_dln, ending, method, parts), teacher, data, parts.probe)
    loss = fixed_loss(method, parts)
    baseline = build_baseline(method, data, parts) if loss is None else FixedLoss(parts.trainee, loss)
    ending = ending_of(method, parts, loss)
    return Arm(method.arm, in_turn(baseline, ending, method, parts), data=data, probe=parts.probe)


def build_l2t_dln(method: L2TDLNConfig | StaticDLNConfig, data: Data, teacher: Teacher | None, parts: Parts) -> L2TDLN:
    trainee = parts.trainee
    make = partial(
        L2TDLN,
        trainee.student,
        trainee.task,
        data,
        sgd=trainee.sgd,
        group=parts.group,
        warm_up=warm_up_of(method, data, parts),
        is_clean=clean_images(parts) if method.clean_images == "trusted" else None,
        num_images=len(parts.dataset.train),
        device=parts.device,
    )
    if isinstance(method, StaticDLNConfig):
        network = build_loss_network(method.loss_network, data.num_classes, seed=parts.config.seed)
        return make(loss_network=network, teacher=None)
    reweight = method.reweight
    if reweight is not None:
        check_centers(parts)
    return make(
        loss_network=bare_loss_network(method.loss_network, data.num_classes),
        teacher=teacher,
        schedule=method.schedule,
        engine=method.engine,
        horizon=method.horizon,
        reweighting=reweight and Reweighting(reweight.metric, reweight.positive, reweight.refresh_every),
        keeps_buffers=method.batch_norm_buffers == "kept",
    )


def warm_up_of(method: L2TDLNConfig | StaticDLNConfig, data: Data, parts: Parts) -> WarmUp | None:
    rounds, trainee = warm_rounds(method, parts.config.training.num_rounds), parts.trainee
    if rounds == 0:
        return None
    plain = FixedLoss(trainee, cross_entropy)
    if method.loss_network.label_entries != "channel":
        return WarmUp(rounds, plain)
    spec = bare_loss_network(method.loss_network, data.num_classes).spec

    def channel_start(student: StudentState, phi: Tensor, index: int) -> Tensor:
        return started_at(spec, phi, estimated_channel(student, parts, data.epoch(index)))

    _, *later = estimate_rounds(method, parts.config.training.num_rounds)
    return WarmUp(rounds, plain, channel_start, later)


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
        def embed(batch: Batch) -> Tensor:
            return trainee.student(student.theta, student.buffers, batch.inputs, with_embedding=True, training=False)[1]

        return torch.cat([embed(batch) for batch in loader.training_images(rows)])

    def on_device(labels: np.ndarray) -> Tensor:
        return torch.tensor(labels, device=parts.device)

    channel = noise_channel(
        embeddings(split.validation),
        on_device(judged[split.validation]),
        embeddings(split.train),
        on_device(observed[split.train]),
        num_classes=dataset.num_classes,
    )
    return group.sum(channel.to(student.theta))


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
        case GLCConfig():
            return GoldLossCorrection(
                trainee,
                data,
                clean_images(parts),
                warm_rounds=warm_rounds(method, num_rounds),
                restarts=method.restarts,
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
