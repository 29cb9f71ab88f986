"""The loss network's derivatives in closed form, against autograd's."""

import pytest
import torch

from l2t_ray.core.loss_network import DynamicLossNetwork
from l2t_ray.core.second_order import SecondOrderOperators


@pytest.mark.parametrize("activation", ["silu", "leaky_relu"])
@pytest.mark.parametrize("label_table", [None, 4])
@pytest.mark.parametrize("pairs", ["sigmoid", "softmax"])
@pytest.mark.parametrize("layers", [2, 5])
def test_value_gradient_and_its_derivatives_are_those_of_autograd(activation, label_table, pairs, layers):
    network = DynamicLossNetwork(
        hidden=7, layers=layers, pairs=pairs, activation=activation, label_table=label_table
    ).double()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, generator=generator, dtype=torch.float64).requires_grad_()
    phi = (network.phi + 0.1 * torch.randn(network.phi.shape, generator=generator)).detach().requires_grad_()
    labels = torch.tensor([0, 3, 1, 2, 2, 0])

    def derivatives():
        loss = (weights * network.losses_at(phi, logits, labels)).sum()
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        second = torch.autograd.grad(
            gradient, (phi, logits, weights), direction, allow_unused=True, materialize_grads=True
        )
        return [loss, gradient, *second]

    expected = derivatives()
    with SecondOrderOperators().offered():
        actual = derivatives()
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    assert expected[2].abs().sum() > 0
