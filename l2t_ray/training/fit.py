"""Train your own model on your own data with a learned loss, in this process: no configuration, no Ray."""

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn

from l2t_ray.core.flat import FlatModule
from l2t_ray.core.group import SingleProcess
from l2t_ray.core.loss_network import DynamicLossNetwork
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN, StudentSgd
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.data.tensors import TensorData
from l2t_ray.interfaces import DivergenceError
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.loop import Arm, Run


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back: the trained model, the loss it was trained with at the end, and a row a round."""

    model: nn.Module
    loss_network: DynamicLossNetwork
    rows: list[dict[str, Any]]


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
        teacher: what changes the loss: `adam` on its weights, or the `lstm`.
        loss_network: where the loss begins; None: fitted to cross-entropy, with a table of label pairs.
        on_row: hears the numbers of each round; `test_accuracy` in them is on the validation set.

    Raises:
        UserError: if the data does not fit together (see `TensorData`).
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
    loss_network = loss_network or DynamicLossNetwork(
        init="cross_entropy", pairs="softmax", activation="silu", label_table=data.num_classes, seed=seed
    )
    student, task = FlatModule(model), Classification()
    num_weights = loss_network.phi.numel()
    rule = adam = AdamRule(num_weights, clip=1.0)
    if teacher == "lstm":
        lstm = LSTMTeacher((20, 20), head="linear", seed=seed)
        rule = LstmRule(lstm, num_weights, step_size=3e-4, horizon=10, clip=1.0, base=adam)
    total = num_rounds * num_steps
    sgd = StudentSgd(lambda step: learning_rate * (1 + cos(pi * step / total)) / 2, num_steps, momentum, weight_decay)
    local = LocalTeacher(loss_network.phi.detach(), rule)
    method = L2TDLN(student, task, data, loss_network, local, sgd, group, device=device)
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
        learned.phi.copy_(local.read().phi)
    return Fit(trained, learned.requires_grad_(False), cut.rows)
