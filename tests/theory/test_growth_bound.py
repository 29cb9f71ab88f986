"""`lambda_max(M^-1 G)` against closed forms and recorded values, and the bounds on it (supplement, Eq. 6)."""

import math

import pytest
import torch

from l2t_ray.theory.alternating import iteration_matrix
from l2t_ray.theory.growth_bound import (
    bound_of_conclusion_1,
    is_real,
    largest_real_eigenvalue,
    negative_curvature,
    sharp_bound,
    spectrum,
)
from l2t_ray.theory.random_hessians import BLOCK_SIZES, check_hessians, check_random_hessians, random_saddle_hessians
from l2t_ray.theory.smoothness import hessian_smoothness

F64 = torch.float64


def two_by_two(a, b, c):
    return torch.tensor([[a, b], [b, c]], dtype=F64)


@pytest.mark.parametrize("eta", [0.05, 0.5, 3.0])
@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 2.0, 1.0), (0.0, 1.0, 0.0), (-0.2, 0.5, 1.0), (-3.0, 0.1, 2.0)])
def test_two_by_two_closed_form(a, b, c, eta):
    """One number a block: trace 2 - eta (a + c) + eta^2 b^2, determinant (1 - eta a)(1 - eta c)."""
    trace = 2 - eta * (a + c) + eta**2 * b**2
    determinant = (1 - eta * a) * (1 - eta * c)
    matrix = iteration_matrix(two_by_two(a, b, c), eta, split=1)
    assert matrix.trace().item() == pytest.approx(trace, abs=1e-12)
    assert torch.linalg.det(matrix).item() == pytest.approx(determinant, abs=1e-12)
    # A saddle with one number a block never has a complex spectrum, so the root is real.
    largest = (trace + math.sqrt(trace**2 - 4 * determinant)) / 2
    actual = largest_real_eigenvalue(spectrum(two_by_two(a, b, c), eta, split=1))
    assert actual.item() == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(
    ("hessian", "eta", "factor", "bound", "plain"),
    [
        ((1.0, 2.0, 1.0), 0.05, 1.0526, 1.02, 1.05),
        ((1.0, 2.0, 1.0), 0.25, 1.3257, 1.10, 1.25),
        ((1.0, 2.0, 1.0), 0.5, 1.8660, 1.20, 1.50),
        ((0.0, 1.0, 0.0), 0.1, 1.1051, 1.05, 1.10),
    ],
)
def test_recorded_values(hessian, eta, factor, bound, plain):
    """Values worked out separately, to the digits given."""
    hessian = two_by_two(*hessian)
    gamma, smoothness = negative_curvature(hessian), hessian_smoothness(hessian, split=1)
    assert largest_real_eigenvalue(spectrum(hessian, eta, split=1)).item() == pytest.approx(factor, abs=5e-5)
    assert bound_of_conclusion_1(gamma, smoothness, eta).item() == pytest.approx(bound, abs=5e-5)
    assert sharp_bound(gamma, eta).item() == pytest.approx(plain, abs=5e-5)
    # Plain gradient descent multiplies by the largest eigenvalue of I - eta H.
    assert 1 - eta * torch.linalg.eigvalsh(hessian)[0].item() == pytest.approx(plain, abs=5e-5)


def test_no_random_hessian_violates_a_bound():
    for (first, second), checks in check_random_hessians(9000, seed=1):
        assert not checks.violates_conclusion_1.any(), (first, second)
        assert not checks.violates_sharp_bound.any(), (first, second)
        assert checks.identity_error.max() < 1e-12
        assert checks.eta_c_max.min() < 0.02 and checks.eta_c_max.max() > 9  # beyond the condition as well
        assert checks.c_ratio.min() >= 1 - 1e-12 and checks.c_ratio.max() <= 2  # what makes the sharp bound the sharper


def test_spectra_are_complex_only_beyond_the_step_size_condition():
    """For eta <= 1 / C_max they are real and not negative (docs/convergence.md); beyond, larger blocks oscillate."""
    num_complex = 0
    for _, checks in check_random_hessians(9000, seed=2):
        assert not checks.is_complex[checks.eta_c_max <= 1].any()
        num_complex += int(checks.is_complex.sum())
    assert num_complex > 100


def test_spectra_inside_the_condition_are_not_negative():
    hessian = random_saddle_hessians(500, (3, 3), generator=torch.Generator().manual_seed(0))
    eigenvalues = spectrum(hessian, 1 / hessian_smoothness(hessian, split=3).c_max, split=3)
    assert eigenvalues.real.min() > -1e-12


def test_order_of_the_blocks_does_not_matter():
    """Swapping who goes first turns a product T_2 T_1 into T_1 T_2, which has the same eigenvalues."""
    hessian = random_saddle_hessians(100, (2, 3), generator=torch.Generator().manual_seed(0))
    swap = [2, 3, 4, 0, 1]
    eta = 0.5 / hessian_smoothness(hessian, split=2).c_max
    first = largest_real_eigenvalue(spectrum(hessian, eta, split=2))
    second = largest_real_eigenvalue(spectrum(hessian[:, swap][:, :, swap], eta, split=3))
    torch.testing.assert_close(first, second, rtol=1e-10, atol=0)


def test_sharp_bound_is_reached_by_decoupled_blocks():
    hessian = torch.diag(torch.tensor([1.0, -0.7, 2.0, -0.3], dtype=F64))
    largest = largest_real_eigenvalue(spectrum(hessian, 0.4, split=2))
    assert largest.item() == pytest.approx(1 + 0.4 * 0.7, rel=1e-14)


def test_the_checks_can_fail():
    """At minima gamma is negative and both claims are false, so neither check is empty."""
    hessian = random_saddle_hessians(50, (2, 2), generator=torch.Generator().manual_seed(0))
    eta_c_max, u = torch.full((50,), 0.5, dtype=F64), torch.ones(50, 4, dtype=F64)
    checks = check_hessians(hessian @ hessian, eta_c_max, u, split=2)
    assert checks.violates_conclusion_1.all()
    assert checks.violates_sharp_bound.sum() > 25  # nearly decoupled ones are equalities, up to rounding


def test_conjugate_pairs_are_not_real():
    rotation = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]], dtype=F64)
    eigenvalues = torch.linalg.eigvals(rotation)
    assert is_real(eigenvalues).sum() == 1
    assert largest_real_eigenvalue(eigenvalues).item() == pytest.approx(0.5)
    assert largest_real_eigenvalue(torch.linalg.eigvals(rotation[:2, :2])).item() == -math.inf


@pytest.mark.parametrize("block_sizes", BLOCK_SIZES)
def test_random_hessians_are_saddles(block_sizes):
    hessian = random_saddle_hessians(200, block_sizes, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hessian, hessian.mT)
    assert (negative_curvature(hessian) > 0).all()


def test_a_hundred_thousand_hessians_are_one_batch_per_size():
    assert len(list(check_random_hessians(90, seed=0))) == len(BLOCK_SIZES)
    counts = [len(checks.gain) for _, checks in check_random_hessians(100, seed=0)]
    assert sum(counts) == 100 * 7
