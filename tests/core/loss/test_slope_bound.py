import pytest
import torch

from l2t_ray.core.loss.network import DynamicLossNetwork, LossNetworkSpec, initial_weights
from l2t_ray.core.loss.slope_bound import LEAST, MOST, SlopeBound, push
from l2t_ray.core.teacher import AdamRule, LocalTeacher

SPEC = LossNetworkSpec(hidden=8, layers=3, pairs="softmax", activation="silu", label_table=4)


def started(spec=SPEC, seed=0):
    return initial_weights(spec, "cross_entropy", seed)


def test_push_is_one_where_the_loss_is_cross_entropy():
    spec = LossNetworkSpec(hidden=40, pairs="softmax", activation="silu")
    found = push(spec, initial_weights(spec, "cross_entropy", 0))
    middle = found.view(3, -1)[:, 4:]  # from p_true = 0.15; the fit clips what is steeper
    torch.testing.assert_close(middle, torch.ones_like(middle), atol=0.25, rtol=0)


def test_push_is_that_of_the_gradient_at_the_logits():
    """Two classes: the gradient of cross-entropy at the label's logit is -(1 - p_true)."""
    network = DynamicLossNetwork(8, 3, "cross_entropy", pairs="softmax", activation="silu")
    phi = network.phi.detach().clone()
    phi[0::4][:8] += 0.3  # the weights of p_true
    phi[1::4][:8] *= 0  # and none of p_other, whose slope is not asked for here
    p = torch.linspace(0.05, 0.95, 19)
    logits = torch.stack((p.log(), (1 - p).log()), dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(network.losses_at(phi, logits, torch.zeros(19, dtype=torch.long)).sum(), logits)
    expected = gradient[:, 0] / -(1 - p)
    torch.testing.assert_close(push(network.spec, phi).view(3, -1)[2, 2:21], expected, atol=1e-4, rtol=1e-4)


def test_what_is_within_bounds_is_left_as_it_is():
    phi = started()
    bound = SlopeBound(SPEC, phi)
    assert torch.equal(bound(phi), phi)
    flatter = phi.clone()
    flatter[-16 - 8 : -16] *= 0.5  # the last layer
    assert torch.equal(bound(flatter), flatter)


def test_a_loss_that_is_too_steep_is_scaled_as_a_whole():
    phi = started()
    steep = phi.clone()
    steep[-16 - 8 : -16] *= 7
    expected = max(MOST, push(SPEC, phi).max().item())
    bounded = SlopeBound(SPEC, phi)(steep)
    assert push(SPEC, bounded).max().item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(bounded, phi, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_turned_over_goes_back_until_it_has_not(seed):
    phi = started(seed=seed)
    turned = phi + 0.6 * torch.randn(len(phi), generator=torch.Generator().manual_seed(seed))
    assert push(SPEC, turned).min() < LEAST
    bounded = SlopeBound(SPEC, phi)(turned)
    assert push(SPEC, bounded).min() >= LEAST
    assert not torch.equal(bounded, phi)  # it keeps what it can


def test_the_quartiles_of_the_table_are_looked_at():
    phi = started()
    phi[-16:] = torch.linspace(-0.5, 0.5, 16)
    assert not torch.allclose(push(SPEC, phi).view(5, -1)[0], push(SPEC, phi).view(5, -1)[4])


def test_a_loss_that_starts_beyond_the_bounds_can_still_move():
    spec = LossNetworkSpec(hidden=8, layers=3)
    phi = initial_weights(spec, "released", 0)
    assert push(spec, phi).min() < LEAST
    nearer = phi * 0.9
    assert torch.equal(SlopeBound(spec, phi)(nearer), nearer)


def test_the_teacher_hands_out_what_its_limit_made():
    phi = torch.tensor([1.0, 2.0])
    teacher = LocalTeacher(phi, AdamRule(2, step_size=0.1), limit=lambda phi: phi.clamp(min=0.95))
    proposed = teacher.propose(0, torch.tensor([1.0, 1.0]), 0.5)
    torch.testing.assert_close(proposed.phi, torch.tensor([0.95, 1.9]))
    assert torch.equal(teacher.read().phi, proposed.phi)
