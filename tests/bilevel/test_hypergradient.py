"""The hypergradient engines against autograd through the whole unroll, and against closed forms."""

import pytest
import torch

from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.engine_choice import graph_bytes
from l2t_ray.bilevel.engines import APPROXIMATIONS, ENGINES, FiniteDifferenceEngine
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch, StudentState
from l2t_ray.parallel.group import SingleProcess


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 1e-2)])
def test_engine_agrees_with_autograd_through_the_unroll(make_problem, engine, norm, momentum, weight_decay):
    p = make_problem(norm=norm, momentum=momentum, weight_decay=weight_decay)
    expected = naive_hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    actual = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    assert expected.gradient.norm() > 1e-6
    assert relative_error(actual.gradient, expected.gradient) < 1e-10
    assert relative_error(actual.student.theta, expected.student.theta) < 1e-12
    torch.testing.assert_close(actual.error, expected.error)
    for name, buffer in expected.student.buffers.items():
        torch.testing.assert_close(actual.student.buffers[name], buffer)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("drawn", ["dropout", "dropout in a block", "drawn elsewhere"])
def test_a_pass_that_is_computed_again_sees_the_masks_of_the_first_time(make_problem, engine, drawn):
    p = make_problem(norm=drawn)

    def drawn_alike(function, **options):
        with counted_draws(7, torch.device("cpu")):
            return function(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, **options)

    expected = drawn_alike(naive_hypergradient)
    actual = drawn_alike(hypergradient, engine=engine)
    assert relative_error(actual.gradient, expected.gradient) < 1e-10
    assert relative_error(actual.student.theta, expected.student.theta) < 1e-12
    with counted_draws(8, torch.device("cpu")):
        other = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    assert relative_error(other.gradient, expected.gradient) > 1e-2


@pytest.mark.parametrize("engine", [*ENGINES, *APPROXIMATIONS])
def test_what_is_drawn_after_the_unroll_does_not_depend_on_the_engine(make_problem, engine):
    p = make_problem(norm="dropout")
    with counted_draws(7, torch.device("cpu")):
        hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
        after = torch.rand(3)
    with counted_draws(7, torch.device("cpu")):
        naive_hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
        assert torch.equal(torch.rand(3), after)


def test_measuring_a_graph_draws_nothing(make_problem):
    p = make_problem(norm="dropout")
    with counted_draws(7, torch.device("cpu")):
        expected = torch.rand(3)
    with counted_draws(7, torch.device("cpu")):
        graph_bytes(p.problem, p.start, p.phi, p.batches[0])
        assert torch.equal(torch.rand(3), expected)


def test_both_sides_of_a_finite_difference_see_the_same_masks(make_problem):
    p = make_problem(norm="dropout")
    errors = []
    for engine in ("store", "finite_difference"):
        with counted_draws(7, torch.device("cpu")):
            errors.append(hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine))
    assert relative_error(errors[1].gradient, errors[0].gradient) < 1e-2


@pytest.mark.parametrize("pairs", ["sigmoid", "softmax"])
def test_agrees_with_central_differences(make_problem, pairs):
    p = make_problem(num_steps=3, pairs=pairs, label_table=None)
    result = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    direction = torch.randn(p.phi.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-5  # third-order error 1e-10, rounding 1e-11

    def error(phi):
        return hypergradient(p.problem, p.start, phi, p.batches, p.val, rates=p.rates).error

    slope = (error(p.phi + step * direction) - error(p.phi - step * direction)) / (2 * step)
    assert abs(slope - result.gradient @ direction) / abs(slope) < 1e-7


@pytest.mark.parametrize("engine", ["naive", *ENGINES])
def test_weight_normalisation_has_its_second_derivative(make_problem, engine):
    """PyTorch's own fused one has a wrong one, or in forward mode none."""

    fused, by_hand = make_problem(norm="weights"), make_problem(norm="weights by hand")

    def gradient(p, take, **options):
        return take(p.problem, fused.start, p.phi, p.batches, p.val, rates=p.rates, **options).gradient

    expected = gradient(by_hand, naive_hypergradient)
    take, options = (naive_hypergradient, {}) if engine == "naive" else (hypergradient, {"engine": engine})
    assert relative_error(gradient(fused, take, **options), expected) < 1e-10


def quadratic_problem():
    """Student loss |theta - phi|^2 / 2, validation error |theta - t|^2 / 2 with t the batch's inputs."""

    def inner_loss(theta, phi, buffers, batch):
        logits = theta[None]
        return (logits - phi).square().sum() / 2, logits

    def outer_error(theta, buffers, batch):
        return (theta - batch.inputs[0]).square().sum() / 2

    return InnerProblem(inner_loss, outer_error, SingleProcess())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num_steps", [1, 5, 40])
def test_matches_closed_form(engine, num_steps):
    """theta_K = phi + (1 - a)^K (theta_0 - phi), so d e / d phi = (1 - (1 - a)^K) (theta_K - t)."""
    theta_0, phi, target = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(target[None], torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    start = StudentState(theta_0, torch.zeros_like(theta_0), {})
    actual = hypergradient(
        quadratic_problem(), start, phi, [batch] * num_steps, batch, rates=[0.1] * num_steps, engine=engine
    )
    decay = 0.9**num_steps
    theta_k = phi + decay * (theta_0 - phi)
    torch.testing.assert_close(actual.gradient, (1 - decay) * (theta_k - target))


@pytest.mark.parametrize("engine", ENGINES)
def test_horizon_cuts_the_derivative_at_a_step(make_problem, engine):
    """Going back h steps is the full hypergradient of a run that starts h steps before the end."""
    p = make_problem()
    whole = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine, horizon=2)
    before = hypergradient(p.problem, p.start, p.phi, p.batches[:3], p.val, rates=p.rates[:3]).student
    last = naive_hypergradient(p.problem, before, p.phi, p.batches[3:], p.val, rates=p.rates[3:])
    assert relative_error(whole.gradient, last.gradient) < 1e-10


@pytest.mark.parametrize("engine", ENGINES)
def test_leaves_its_arguments_alone(make_problem, engine):
    p = make_problem()
    before = [p.phi.clone(), p.start.theta.clone(), p.start.velocity.clone()]
    buffers = {name: buffer.clone() for name, buffer in p.start.buffers.items()}
    hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    for tensor, copy in zip([p.phi, p.start.theta, p.start.velocity], before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor.grad is None and not tensor.requires_grad
    for name, buffer in buffers.items():
        assert torch.equal(p.start.buffers[name], buffer)


@pytest.mark.parametrize("engine", ENGINES)
def test_running_statistics_move_once_a_step(make_problem, engine):
    """As in plain training: neither the way back nor the validation pass may touch them."""
    p = make_problem(norm="batch", num_steps=4)
    result = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    assert result.student.buffers["1.num_batches_tracked"] == 4
    assert not torch.equal(result.student.buffers["1.running_mean"], p.start.buffers["1.running_mean"])


def test_sample_weights_are_constants_for_the_derivative(make_problem):
    p = make_problem(num_steps=3)

    def reweigh(theta, buffers, batch):
        weights = torch.softmax(theta[: len(batch.targets)], dim=0)
        return batch._replace(weights=weights.detach())

    problem = InnerProblem(p.inner_loss, p.outer_error, SingleProcess(), Sgd(0.9, 1e-2), reweigh)
    expected = naive_hypergradient(problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    for engine in ENGINES:
        actual = hypergradient(problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
        assert relative_error(actual.gradient, expected.gradient) < 1e-10


def test_refuses_what_makes_no_sense(make_problem):
    p = make_problem(num_steps=1)
    with pytest.raises(ValueError, match="at least one training minibatch"):
        hypergradient(p.problem, p.start, p.phi, [], p.val, rates=[])
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, horizon=0)


@pytest.mark.parametrize("norm", ["none", "group"])
# torch keeps one level of forward-mode derivatives for all threads, so `forward_over_reverse` needs real processes
@pytest.mark.parametrize("engine", ["store", "recompute", *APPROXIMATIONS])
def test_shares_of_two_slices_sum_to_the_whole(make_problem, run_on_two_workers, norm, engine):
    """With lambda and nu summed between steps, the workers' phi shares add up to the global hypergradient."""
    p = make_problem(norm=norm)
    whole = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    replicas = [make_problem(norm=norm) for _ in range(2)]  # a module cannot be called from two threads at once

    def cut(batch, rank):
        part = slice(0, 4) if rank == 0 else slice(4, None)
        return Batch(*(field[part] for field in batch))

    def work(group):
        own = replicas[group.rank]
        problem = InnerProblem(own.inner_loss, own.outer_error, group, Sgd(0.9, 1e-2))
        batches = [cut(batch, group.rank) for batch in p.batches]
        return hypergradient(problem, p.start, p.phi, batches, cut(p.val, group.rank), rates=p.rates, engine=engine)

    results = run_on_two_workers(work)
    # a difference of gradients over a small step magnifies rounding
    tolerance = 1e-10 if engine != "finite_difference" else 1e-8
    assert relative_error(results[0].gradient + results[1].gradient, whole.gradient) < tolerance
    torch.testing.assert_close(results[0].error + results[1].error, whole.error)
    assert relative_error(results[1].student.theta, whole.student.theta) < 1e-12


# -- what is not exact


def test_one_step_is_the_derivative_of_the_last_step_alone(make_problem):
    p = make_problem()
    actual = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine="one_step")
    before = hypergradient(p.problem, p.start, p.phi, p.batches[:-1], p.val, rates=p.rates[:-1]).student
    last = naive_hypergradient(p.problem, before, p.phi, p.batches[-1:], p.val, rates=p.rates[-1:])
    assert relative_error(actual.gradient, last.gradient) < 1e-10
    assert relative_error(actual.student.theta, last.student.theta) < 1e-12


def test_the_error_of_a_finite_difference_falls_with_the_square_of_its_radius(make_problem, monkeypatch):
    p = make_problem()  # a smooth student: there are no kinks to cross
    exact = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates).gradient

    def error_at(radius):
        monkeypatch.setattr(FiniteDifferenceEngine, "radius", radius)
        options = {"rates": p.rates, "engine": "finite_difference"}
        return relative_error(hypergradient(p.problem, p.start, p.phi, p.batches, p.val, **options).gradient, exact)

    coarse, fine = error_at(0.02), error_at(0.01)
    assert 3.8 < coarse / fine < 4.2
    assert 1e-8 < fine < 1e-2


def test_a_finite_difference_along_nothing_is_nothing(make_problem):
    p = make_problem(num_steps=2, norm="none")
    tape = FiniteDifferenceEngine(p.problem, p.phi, 1)
    tape.gradient(p.start.theta, p.start.buffers, p.batches[0])
    along_theta, along_phi = tape.products(torch.zeros_like(p.start.theta))
    assert not along_theta.any() and not along_phi.any()


@pytest.mark.parametrize("engine", APPROXIMATIONS)
def test_approximations_leave_arguments_and_running_statistics_alone(make_problem, engine):
    p = make_problem(norm="batch", num_steps=4)
    theta = p.start.theta.clone()
    result = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    assert result.student.buffers["1.num_batches_tracked"] == 4
    assert torch.equal(p.start.theta, theta) and p.start.buffers["1.num_batches_tracked"] == 0


# -- what is kept, and which engine that suits


def test_steps_before_the_horizon_keep_no_graph(make_problem):
    p = make_problem()
    requires_graph = []

    def inner_loss(theta, phi, buffers, batch):
        requires_graph.append(phi.requires_grad)
        return p.inner_loss(theta, phi, buffers, batch)

    problem = InnerProblem(inner_loss, p.outer_error, SingleProcess())
    hypergradient(problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine="store", horizon=2)
    assert requires_graph == [False, False, False, True, True]


def test_engines_take_the_same_steps_to_the_last_bit(make_problem):
    """Rounding that differed between engines would grow along training."""
    p = make_problem()
    ends = [
        hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine).student.theta
        for engine in ENGINES
    ]
    for theta in ends[1:]:
        assert torch.equal(theta, ends[0])
