"""Which classes a loss with a table of label pairs weighs up, against slopes taken by differences."""

import pytest
import torch

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.pairs import TABLE_SCALE


def loss_of(num_classes, **settings):
    network = DynamicLossNetwork(8, 3, init="linear", activation="silu", label_table=num_classes, **settings)
    return PairLoss(network.double())


def test_classes_that_the_table_treats_alike_have_a_weight_of_one():
    loss = loss_of(4)
    weights = [loss.report(loss.phi)[f"class_weight_{number}"] for number in range(4)]
    assert weights == pytest.approx([1.0] * 4, abs=1e-12)


def test_a_weight_is_the_push_towards_a_class_over_the_mean_of_all():
    loss = loss_of(3)
    phi = loss.phi.clone()
    phi[-9:] = 0.1 * torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table = TABLE_SCALE * phi[-9:].view(3, 3)
    step, pushes = 1e-5, []
    for label in range(3):
        own = []
        for other in {0, 1, 2} - {label}:
            for p in (0.1, 0.3, 0.5, 0.7, 0.9):
                for share in (0.1, 1.0):
                    pairs = torch.tensor([[p + d, (1 - p) * share] for d in (step, -step)], dtype=torch.float64)
                    up, down = loss.spec.parts.network.losses(phi[:-9], pairs, table[label, other].expand(2))
                    own.append(-p * (up - down).item() / (2 * step))
        pushes.append(sum(own) / len(own))
    mean = sum(pushes) / 3
    found = loss.report(phi)
    assert [found[f"class_weight_{k}"] for k in range(3)] == pytest.approx([x / mean for x in pushes], rel=1e-6)
    bars = loss.pictures(phi)[1]
    assert bars.are_classes and {f"{bars.column}{name}": x for name, x in bars.numbers.items()} == found


def test_a_loss_without_a_table_or_of_very_many_classes_reports_none():
    plain = PairLoss(DynamicLossNetwork(8, 3))
    assert plain.report(plain.phi) == {} == loss_of(41).report(loss_of(41).phi)
