"""Train your own model on your own data with a learned loss, in this process: no configuration, no Ray."""

import logging
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn

from l2t_ray.baselines.fixed_loss import FixedLoss
from l2t_ray.baselines.trainee import Trainee, cross_entropy
from l2t_ray.core.flat import FlatModule
from l2t_ray.core.group import SingleProcess
from l2t_ray.core.loss_network import DynamicLossNetwork, started_at
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN, StudentSgd, WarmUp
from l2t_ray.core.noise_estimate import NoiseEstimate, estimate_noise
from l2t_ray.core.slope import SlopeBound
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.data.tensors import TensorData
from l2t_ray.interfaces import DivergenceError, StudentState, UserError, loss_in_use
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.loop import Arm, Run

_IMAGES_AT_ONCE = 500
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back: the trained model, the loss it was trained with at the end, and a row a round.

    `noise` is the estimate that the loss started from, with its standard errors; None where there was none.
    """

    model: nn.Module
    loss_network: DynamicLossNetwork
    rows: list[dict[str, Any]]
    noise: NoiseEstimate | None = None


def fit(
    model: nn.Module,
    *,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    num_rounds: int = 300,
    num_steps: int = 15,
    batch_size: int = 25,
    val_batch_size: int = 100,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 5e-4,
    warm_share: float = 0.15,
    teacher: Literal["lstm", "adam"] = "adam",
    loss_network: DynamicLossNetwork | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Fit:
    """Trains `model` on noisy examples under a loss that is learned from clean ones.

    Args:
        model: gives logits `[n, c]` for inputs `[n, ...]`; left as it is.
        train: inputs and labels to train on; labels may be wrong.
        validation: inputs and labels to judge by; small and clean. Never trained on.
        num_rounds: changes of the loss; the model takes `num_rounds * num_steps` SGD steps, with cosine decay.
        warm_share: share of the rounds under plain cross-entropy, after which the label noise is estimated and the
            loss goes on from there (`core/noise_estimate.py`). Short enough that wrong labels are not memorised in it.
            0: the loss is learned from the first round on.
        teacher: what changes the loss: `adam` on its weights, or the `lstm`.
        loss_network: where the loss begins; None: fitted to cross-entropy, with a noise channel, or with a table of
            label pairs if `warm_share` is 0. The noise is estimated for a loss network with a channel alone.
        on_row: hears the numbers of each round; `test_accuracy` in them is on the validation set.

    Raises:
        UserError: if the data does not fit together (see `TensorData`), or `loss_network` is for another number of
            classes.
        DivergenceError: if the training error or a gradient is not finite.
    """
    group = SingleProcess()
    data = TensorData(
        train,
        validation,
        num_steps=num_steps,
        batch_size=batch_size,
        val_batch_size=val_batch_size,
        seed=seed,
        device=device,
    )
    warm_rounds = round(warm_share * num_rounds)
    loss_network = loss_network or DynamicLossNetwork(
        init="cross_entropy",
        pairs="softmax",
        activation="silu",
        channel=data.num_classes if warm_rounds else None,
        label_table=None if warm_rounds else data.num_classes,
        seed=seed,
    )
    spec = loss_network.spec
    if spec.num_classes not in (None, data.num_classes):
        raise UserError(
            f"loss_network is for {spec.num_classes} classes, and the labels have {data.num_classes}; "
            "make one for as many, or leave it out."
        )
    student, task = FlatModule(model), Classification()
    num_weights = loss_network.phi.numel()
    rule = adam = AdamRule(num_weights, clip=1.0)
    if teacher == "lstm":
        lstm = LSTMTeacher((20, 20), head="linear", seed=seed)
        rule = LstmRule(lstm, num_weights, step_size=3e-4, horizon=10, clip=1.0, base=adam)
    total = num_rounds * num_steps
    sgd = StudentSgd(lambda step: learning_rate * (1 + cos(pi * step / total)) / 2, num_steps, momentum, weight_decay)
    phi = loss_network.phi.detach()
    local = LocalTeacher(phi, rule, SlopeBound(spec, phi))
    warm_up, estimates = None, list[NoiseEstimate]()
    if warm_rounds:

        def channel_start(trained: StudentState, phi: Tensor, index: int) -> Tensor:
            del index
            estimates.append(_estimated_noise(student, trained, train, validation, data.num_classes, device))
            return started_at(spec, phi, estimates[-1].channel.to(phi))

        plain = FixedLoss(Trainee(student, task, sgd, group, device), cross_entropy)
        warm_up = WarmUp(warm_rounds, plain, channel_start if spec.channel else None)
    method = L2TDLN(
        student,
        task,
        data,
        loss_network,
        local,
        sgd,
        group,
        warm_up=warm_up,
        num_images=len(train[0]),
        device=device,
    )
    run = Run(
        arms=[Arm("l2t_dln", method, local)],
        student=student,
        task=task,
        data=data,
        group=group,
        num_rounds=num_rounds,
        num_steps=num_steps,
        images_per_round=num_steps * batch_size,
        eval_every=25,
        checkpoint_every=num_rounds,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is raised, below
        cut = run.train(start=None, store=None, on_row=on_row)
    if cut.diverged:
        raise DivergenceError(*cut.diverged.values())
    trained, learned = deepcopy(model), deepcopy(loss_network)
    FlatModule(trained).load(cut.state.student.theta, cut.state.student.buffers)
    with torch.no_grad():
        learned.phi.copy_(loss_in_use(local.read().phi, cut.state))
    return Fit(trained, learned.requires_grad_(False), cut.rows, estimates[-1] if estimates else None)


@torch.no_grad()
def _estimated_noise(
    student: FlatModule,
    trained: StudentState,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    num_classes: int,
    device: torch.device | str,
) -> NoiseEstimate:
    """The noise of the training labels, as this student and the validation labels show it."""

    def log_probabilities(inputs: Tensor) -> Tensor:
        pieces = inputs.split(_IMAGES_AT_ONCE)
        logits = [student(trained.theta, trained.buffers, x.to(device), training=False) for x in pieces]
        return torch.cat(logits).double().log_softmax(dim=1)

    noisy, clean = (labels.to(device) for _, labels in (train, validation))
    of_clean, of_noisy = log_probabilities(validation[0]), log_probabilities(train[0])
    estimate = estimate_noise(of_clean, clean, of_noisy, noisy, num_classes=num_classes)
    _LOG.info("label noise: %s", estimate)
    return estimate
