"""From a configuration to the loss network and its teacher."""

import torch

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.slope_bound import SlopeBound
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.data.counted import torch_seed
from l2t_ray.settings.experiment import AdamConfig, L2TDLNConfig, LossNetworkConfig, LstmConfig


def build_loss_network(loss: LossNetworkConfig, num_classes: int, *, seed: int) -> DynamicLossNetwork:
    return DynamicLossNetwork(
        loss.hidden,
        loss.layers,
        loss.init,
        pairs=loss.pairs,
        activation=loss.activation,
        label_table=num_classes if loss.label_entries == "table" else None,
        mean=loss.mean,
        channel=num_classes if loss.label_entries == "channel" else None,
        memory=loss.memory,
        seed=torch_seed(seed, "loss network"),
    )


def bare_loss_network(loss: LossNetworkConfig, num_classes: int) -> DynamicLossNetwork:
    """The architecture alone: its weights are the teacher's to say, so none are fitted."""
    return build_loss_network(loss.model_copy(update={"init": "released"}), num_classes, seed=0)


def build_teacher(method: L2TDLNConfig, num_classes: int, *, seed: int) -> LocalTeacher:
    """A teacher at its beginning, with the loss network's first weights."""
    loss_network = build_loss_network(method.loss_network, num_classes, seed=seed)
    phi = loss_network.phi.detach()
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
    return LocalTeacher(
        phi, rule, SlopeBound(loss_network.spec, phi) if method.loss_network.slope == "bounded" else None
    )


def idle_teacher(method: L2TDLNConfig, num_classes: int) -> LocalTeacher:
    """Stands in for a teacher that is not asked: a loss network's first weights are fitted for seconds."""
    del method, num_classes
    return LocalTeacher(torch.zeros(1), AdamRule(1))


def build_adam(adam: AdamConfig, num_weights: int) -> AdamRule:
    return AdamRule(num_weights, step_size=adam.step_size, clip=adam.clip)
