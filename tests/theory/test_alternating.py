"""One step of alternating descent against its matrices, `M u+ = G u` (supplement, Eqs. 8 and 21)."""

import pytest
import torch

from l2t_ray.theory.alternating import (
    agd_matrices,
    alternating_step,
    gradient_of,
    hessian_of,
    identity_error,
    iteration_matrix,
    simultaneous_step,
)
from l2t_ray.theory.saddles import quadratic, quartic

F64 = torch.float64


def random_symmetric(size, seed=0):
    entries = torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return (entries + entries.T) / 2


@pytest.mark.parametrize(("size", "split"), [(2, 1), (5, 1), (5, 4), (8, 3)])
def test_matrices_give_the_step(size, split):
    hessian = random_symmetric(size)
    u = torch.randn(7, size, dtype=F64, generator=torch.Generator().manual_seed(1))
    error = identity_error(hessian.expand(7, size, size), u, torch.linspace(0.01, 2, 7, dtype=F64), split=split)
    assert error.max() < 1e-12  # the bar of the specification; some 50 roundings of numbers near 10 are 1e-14


def test_step_of_a_quadratic_is_the_iteration_matrix():
    """The same identity by automatic differentiation: a second way to the gradient and to the inverse of M."""
    hessian = random_symmetric(6)
    saddle = quadratic(hessian, split=2)
    u = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    stepped = alternating_step(gradient_of(saddle.function), u, 0.3, split=2)
    m, g = agd_matrices(hessian, 0.3, split=2)
    torch.testing.assert_close(stepped, torch.linalg.solve(m, (u @ g.T).T).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(stepped, u @ iteration_matrix(hessian, 0.3, split=2).T, rtol=0, atol=1e-12)


def test_second_block_sees_the_new_first_block():
    # e = x y at (1, 1): x moves to 1 - eta, and y by eta times the *new* x.
    gradient = gradient_of(lambda u: u[0] * u[1])
    ones = torch.ones(1, 2, dtype=F64)
    torch.testing.assert_close(alternating_step(gradient, ones, 0.1, split=1), torch.tensor([[0.9, 0.91]], dtype=F64))
    torch.testing.assert_close(simultaneous_step(gradient, ones, 0.1), torch.tensor([[0.9, 0.9]], dtype=F64))


def test_determinant_of_m_is_one():
    m, _ = agd_matrices(random_symmetric(7), 0.7, split=3)
    torch.testing.assert_close(torch.linalg.det(m), torch.tensor(1.0, dtype=F64))


def test_hessian_of_the_quartic():
    a, b = 0.2, 0.5
    actual = hessian_of(quartic(a, b).function)(torch.tensor([2.0, -1.0], dtype=F64))
    torch.testing.assert_close(actual, torch.tensor([[12 - a, b], [b, 1.0]], dtype=F64))


@pytest.mark.parametrize("split", [0, 4])
def test_an_empty_block_is_refused(split):
    with pytest.raises(ValueError, match=f"must leave two blocks of a Hessian of size 4, got {split}"):
        agd_matrices(random_symmetric(4), 0.1, split=split)
