"""Escape: exponential at strict saddles, at the rate `log lambda_max`; not at a degenerate one."""

import math
from functools import partial

import pytest
import torch

from l2t_ray.theory.alternating import alternating_step, descent_path, gradient_of, iteration_matrix
from l2t_ray.theory.escape import escape_mode, escape_times, log_slope, predicted_escape_time, random_starts
from l2t_ray.theory.escape_studies import control_slope, escape_by_start, escape_by_step_size, growth_at
from l2t_ray.theory.growth_bound import negative_curvature
from l2t_ray.theory.saddles import monkey, quadratic, quartic, strict_examples

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("index", range(4))
def test_strict_saddles_are_stationary_and_left_at_the_predicted_rate(index):
    saddle = strict_examples(generator=seeded())[index]
    assert gradient_of(saddle.function)(saddle.point[None]).norm() < 1e-10
    assert negative_curvature(saddle.hessian()) > 0.05
    row, distances = growth_at(saddle, num_starts=8, generator=seeded())
    # The fit ends 1e-4 from the saddle: there the function's third derivative bends the line by about as much.
    assert row.slope_error < 1e-4
    assert row.slope == pytest.approx(row.log_factor, rel=1e-4)
    assert row.factor >= row.bound_sharp > row.bound_conclusion_1 > 1
    assert distances[0] < 2e-6 and distances[-1] > 1e-2


def test_growth_on_a_quadratic_is_exact():
    """The left eigenvector sees a factor of exactly lambda_max from the first step on; the distance does not."""
    hessian = torch.tensor([[1.0, 2.0, 0.3], [2.0, 1.0, -0.4], [0.3, -0.4, 0.7]], dtype=F64)
    saddle = quadratic(hessian, split=1)
    mode = escape_mode(hessian, 0.2, split=1)
    assert mode.factor == pytest.approx(torch.linalg.eigvals(iteration_matrix(hessian, 0.2, split=1)).real.max().item())
    starts = random_starts(saddle.point, 5, radius=1.0, generator=seeded())
    path = descent_path(partial(alternating_step, gradient_of(saddle.function), eta=0.2, split=1), starts, 12)
    slopes = log_slope((path @ mode.left).abs())
    torch.testing.assert_close(slopes, torch.full((5,), math.log(mode.factor), dtype=F64), rtol=1e-11, atol=0)


def test_escape_table_of_the_quartic():
    """Medians of 20 starts from 1e-6 to 0.1, recorded separately with other random starts.

    The start's share of the escaping direction moves a median of 20 by some percent of log(R / r_0) / log(lambda);
    the two last columns have no chance in them.
    """
    etas = (0.05, 0.1, 0.5, 1.0)
    recorded = {
        0.05: (632, 637, 605, 1324),
        0.1: (316, 322, 303, 665),
        0.5: (65, 69, 61, 138),
        1.0: (33, 38, 31, 72),
    }
    for row in escape_by_step_size(etas, num_starts=20, generator=seeded()):
        alternating, plain, predicted, limit = recorded[row.eta]
        assert row.alternating == pytest.approx(alternating, rel=0.05)
        assert row.simultaneous == pytest.approx(plain, rel=0.05)
        assert row.predicted == pytest.approx(predicted, abs=0.6)
        assert row.conclusion_1 == pytest.approx(limit, abs=0.6)
        assert row.alternating < row.simultaneous < row.conclusion_1


def test_prediction_for_the_smallest_recorded_step():
    """eta = 0.01, without the three thousand steps."""
    saddle = quartic()
    predicted = predicted_escape_time(
        escape_mode(saddle.hessian(), 0.01, split=1).factor, start_radius=1e-6, radius=0.1
    )
    assert predicted.item() == pytest.approx(3023, abs=0.6)


def test_control_does_not_escape_exponentially():
    assert negative_curvature(monkey().hessian()).item() == 0
    assert control_slope(generator=seeded()) < 1e-4  # e-folds a step; the strict saddles have 0.03 to 0.5


def test_control_slows_down_like_the_inverse_of_the_start():
    far, near = sorted(
        escape_by_start((1e-2, 1e-3), num_starts=8, generator=seeded()), key=lambda row: -row.start_radius
    )
    # du/dt = 3 u^2 takes time in proportion to 1/r_0 - 1/R: eleven times longer from a tenth of the distance.
    assert near.degenerate / far.degenerate > 6
    # The strict saddle adds log(10) / log(lambda_max) steps, with a step of 0.5 / C_max.
    assert near.strict - far.strict == pytest.approx(math.log(10) / math.log(1.2067), abs=4)


def test_no_escape_from_the_stable_subspace():
    """Why the analysis this one builds on perturbs the iterates: without chance, a start can converge to the saddle."""
    hessian = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    saddle = quadratic(hessian, split=1)
    values, vectors = torch.linalg.eig(iteration_matrix(hessian, 0.1, split=1))
    stable = vectors[:, values.real.argmin()].real[None]
    step = partial(alternating_step, gradient_of(saddle.function), eta=0.1, split=1)
    path = descent_path(step, stable, 25)  # rounding, grown by lambda_max, comes up to 1e-14 in 25 steps
    assert path[-1].norm() < 1e-3
    assert (escape_times(step, saddle.point[None], saddle.point, radius=0.1, max_steps=200) == -1).all()


def test_escape_time_counts_steps():
    # e = -u^2 / 2 (in both blocks) with eta = 1 doubles the distance: 1e-3, 2e-3, 4e-3, 8e-3, 16e-3.
    saddle = quadratic(-torch.eye(2, dtype=F64), split=1)
    step = partial(alternating_step, gradient_of(saddle.function), eta=1.0, split=1)
    starts = torch.tensor([[1e-3, 0.0], [0.0, 1.1e-2]], dtype=F64)
    assert escape_times(step, starts, saddle.point, radius=1e-2, max_steps=50).tolist() == [4, 0]
    assert escape_times(step, starts, saddle.point, radius=1e-2, max_steps=3).tolist() == [-1, 0]
