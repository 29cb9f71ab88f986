"""Lipschitz constants of Definition 1 where they are known."""

import pytest
import torch

from l2t_ray.theory.saddles import matrix_factorisation, quadratic, quartic
from l2t_ray.theory.smoothness import estimate_smoothness, hessian_smoothness

F64 = torch.float64


def test_norms_of_blocks():
    hessian = torch.tensor([[3.0, 0.0, 1.0], [0.0, -4.0, 2.0], [1.0, 2.0, 0.5]], dtype=F64)
    smoothness = hessian_smoothness(hessian, split=2)
    assert smoothness.c_1.item() == pytest.approx(4)
    assert smoothness.c_2.item() == pytest.approx(0.5)
    assert smoothness.cross.item() == pytest.approx(5**0.5)
    assert smoothness.c_max.item() == pytest.approx(4)
    assert smoothness.c.item() == pytest.approx(torch.linalg.eigvalsh(hessian).abs().max().item())


def test_quadratic_is_the_same_everywhere():
    hessian = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    saddle = quadratic(hessian, split=1)
    generator = torch.Generator().manual_seed(0)
    smoothness = estimate_smoothness(saddle.function, saddle.point, split=1, radius=5.0, generator=generator)
    torch.testing.assert_close(torch.stack(smoothness), torch.tensor([3.0, 1.0, 1.0, 2.0], dtype=F64))


def test_quartic_reaches_its_supremum():
    """On the ball of radius R, |e_xx| = |3 x^2 - a| is largest at x = R; sampling comes close, from below."""
    saddle, radius = quartic(a=0.2, b=0.5), 2.0
    generator = torch.Generator().manual_seed(0)
    smoothness = estimate_smoothness(saddle.function, saddle.point, split=1, radius=radius, generator=generator)
    exact = 3 * radius**2 - 0.2
    assert 0.99 * exact < smoothness.c_1.item() <= exact
    assert smoothness.c_2.item() == pytest.approx(1)
    assert smoothness.cross.item() == pytest.approx(0.5)


def test_matrix_factorisation_is_all_coupling_at_zero():
    target = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    saddle = matrix_factorisation(target, rank=2)
    smoothness = hessian_smoothness(saddle.hessian(), split=saddle.split)
    assert smoothness.c_1.item() == smoothness.c_2.item() == 0
    torch.testing.assert_close(smoothness.c, torch.linalg.matrix_norm(target, ord=2))
