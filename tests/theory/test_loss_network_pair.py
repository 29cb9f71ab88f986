"""A student and its loss network: where the theory applies, and where it does not."""

import math

import pytest
import torch
from torch.func import jacrev

from l2t_ray.theory.alternating import gradient_of, hessian_of
from l2t_ray.theory.different_objectives import attracting_saddle, student_growth
from l2t_ray.theory.escape_studies import growth_at
from l2t_ray.theory.growth_bound import negative_curvature
from l2t_ray.theory.loss_network_pair import blobs_pair, joint_saddles, loss_network_saddles
from l2t_ray.theory.stationary import find_stationary_point

F64 = torch.float64
PAIR = blobs_pair(generator=torch.Generator().manual_seed(0))


def random_phi():
    return torch.randn(PAIR.num_phi, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_unroll_takes_plain_gradient_steps():
    theta = 0.3 * torch.randn(PAIR.num_theta, dtype=F64, generator=torch.Generator().manual_seed(2))
    phi, expected = random_phi(), theta
    for _ in range(PAIR.num_steps):
        leaf = expected.clone().requires_grad_()
        expected = (leaf - PAIR.rate * torch.autograd.grad(PAIR.learned_loss(leaf, phi), leaf)[0]).detach()
    torch.testing.assert_close(PAIR.unroll(theta, phi), expected)


def test_joint_saddle_is_a_saddle_of_the_student_and_obeys_the_bounds():
    """At a stationary point the Hessian of e(theta_K) is J' (Hessian of e) J, with J the Jacobian of theta_K."""
    (saddle, *_) = joint_saddles(PAIR, num_starts=2, generator=torch.Generator().manual_seed(0)).saddles
    assert gradient_of(saddle.function)(saddle.point[None]).norm() < 1e-10

    def theta_k(u):
        return PAIR.unroll(u[: PAIR.num_theta], u[PAIR.num_theta :])

    jacobian = jacrev(theta_k)(saddle.point)
    inner = hessian_of(PAIR.validation_error)(theta_k(saddle.point))
    torch.testing.assert_close(saddle.hessian(), jacobian.T @ inner @ jacobian, rtol=0, atol=1e-9)
    assert negative_curvature(inner) > 0
    row, _ = growth_at(saddle, num_starts=4, generator=torch.Generator().manual_seed(0))
    assert row.factor > row.bound_sharp > row.bound_conclusion_1 and row.slope_error < 1e-4


def test_saddles_of_the_loss_network_alone():
    found = loss_network_saddles(PAIR, num_starts=2, generator=torch.Generator().manual_seed(0))
    assert found.num_starts == 2 and found.saddles
    for saddle in found.saddles:
        row, _ = growth_at(saddle, num_starts=4, generator=torch.Generator().manual_seed(0))
        assert row.factor > row.bound_sharp > row.bound_conclusion_1 and row.slope_error < 1e-4


def grow(phi):
    return student_growth(
        PAIR, phi, start_radius=1e-6, num_rounds=5, teacher_rate=0.1, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("scale", [0.25, 0.5])  # small enough to stay near zero for five rounds
def test_student_leaves_at_the_rate_of_the_loss_it_descends(scale):
    growth = grow(scale * random_phi())
    assert growth.measured == pytest.approx(growth.of_learned_loss, rel=1e-6)
    assert not math.isclose(growth.measured, growth.of_error, rel_tol=0.05)


def test_student_stays_at_a_strict_saddle_of_the_error_under_a_loss_of_zero():
    growth = grow(torch.zeros(PAIR.num_phi, dtype=F64))
    assert growth.of_error > 0.1  # the error has a direction to escape along, but nobody goes there
    assert growth.measured == growth.of_learned_loss == 0


def test_two_objectives_can_be_attracted_to_a_strict_saddle():
    trap = attracting_saddle(gamma=0.25, coupling=1.0, eta=0.1)
    assert torch.linalg.eigvalsh(trap.error_hessian)[0] < -0.25
    assert torch.linalg.eigvals(trap.iteration).abs().max() < 1
    # With too little coupling the same pair does escape, so the check can tell the two apart.
    weak = attracting_saddle(gamma=0.25, coupling=0.3, eta=0.1)
    assert torch.linalg.eigvals(weak.iteration).abs().max() > 1


def test_stationary_points_of_any_kind_are_found():
    # x^3/3 - x has a minimum at 1 and a maximum at -1.
    def function(u):
        return (u**3 / 3 - u).sum()

    for start, expected in ((0.6, 1.0), (-0.6, -1.0)):
        found = find_stationary_point(function, torch.tensor([start], dtype=F64))
        assert found.is_stationary and found.point.item() == pytest.approx(expected)


def test_a_point_that_is_not_stationary_says_so():
    found = find_stationary_point(lambda u: (u + u**3 / 3).sum(), torch.tensor([1.0], dtype=F64))
    assert not found.is_stationary and found.gradient_norm == pytest.approx(1.0, abs=1e-3)
