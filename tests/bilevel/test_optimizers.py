"""The student's optimizers: their steps against PyTorch's own, and the way back through them against autograd."""

import pytest
import torch

from l2t_ray.bilevel.engines import APPROXIMATIONS, ENGINES, StoreEngine
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.optimizers import NUM_STEPS, SECOND_MOMENT, Adam, Costates, Optimizer, Sgd
from l2t_ray.bilevel.unroll import InnerProblem, plain_steps
from l2t_ray.interfaces import Batch
from l2t_ray.parallel.group import SingleProcess

CLIP = 0.11
"""In between the norms of the steps' gradients: some are clipped."""

OPTIMIZERS = {
    "sgd clipped": Sgd(0.9, 1e-2, clip=CLIP),
    "sgd without momentum, clipped": Sgd(clip=CLIP),
    "nesterov": Sgd(0.9, 1e-2, nesterov=True),
    "nesterov clipped": Sgd(0.8, 1e-2, nesterov=True, clip=CLIP),
    "adam": Adam(),
    "adam with decay in the gradient": Adam(weight_decay=1e-2),
    "adam with decay in the gradient, clipped": Adam((0.8, 0.95), 1e-4, weight_decay=1e-2, clip=CLIP),
    "adam with an epsilon below the root": Adam(eps_root=1e-3),
    "adam without memory": Adam((0.0, 0.0), 1e-2),
    "adamw": Adam(weight_decay=1e-1, decoupled=True),
    "adamw clipped": Adam((0.7, 0.9), 1e-6, weight_decay=1e-1, decoupled=True, clip=CLIP),
}
of_every_kind = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def in_the_midst(make_problem, optimizer, **options):
    """A problem whose student has taken steps before, at rates that a schedule might give."""
    p = make_problem(optimizer=optimizer, **options)
    fresh = optimizer.begin(p.start.theta, p.start.buffers)
    phi = p.phi + 0.1
    rates = [0.1, 0.05, 0.02] if isinstance(optimizer, Sgd) else [0.01, 0.02, 0.005]
    p.start, _ = plain_steps(p.problem, fresh, phi, p.batches[:3], rates)
    p.rates = [rate if isinstance(optimizer, Sgd) else rate / 10 for rate in p.rates]
    p.rates[1] = 0.0  # as at the end of a cosine
    return p


@of_every_kind
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_agrees_with_autograd_through_the_unroll(make_problem, engine, optimizer):
    p = in_the_midst(make_problem, optimizer)
    expected = naive_hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    actual = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    assert expected.gradient.norm() > 1e-6
    assert relative_error(actual.gradient, expected.gradient) < 1e-10
    # A bias before a batch norm has gradients of nothing but rounding, and Adam divides them by eps.
    assert relative_error(actual.student.theta, expected.student.theta) < 1e-10
    assert actual.student.carried.keys() == expected.student.carried.keys()
    for name, tensor in expected.student.carried.items():
        torch.testing.assert_close(actual.student.carried[name], tensor)
        assert not tensor.requires_grad


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[name] for name in OPTIMIZERS if "clipped" in name])
def test_some_steps_are_clipped_and_others_are_not(make_problem, optimizer):
    """Else the test above would not see the clipping."""
    p = in_the_midst(make_problem, optimizer)
    norms = [s.gradient_norm for s in plain_steps(p.problem, p.start, p.phi, p.batches, p.rates)[1]]
    assert min(norms) < CLIP < max(norms)


@of_every_kind
def test_the_derivative_is_that_of_central_differences(make_problem, optimizer):
    """Autograd's own, through clipping and roots, is no more than a claim."""
    p = in_the_midst(make_problem, optimizer, num_steps=3)
    result = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    direction = result.gradient / result.gradient.norm()
    step = 1e-5

    def error(phi):
        return hypergradient(p.problem, p.start, phi, p.batches, p.val, rates=p.rates).error

    slope = (error(p.phi + step * direction) - error(p.phi - step * direction)) / (2 * step)
    assert abs(slope - result.gradient.norm()) / abs(slope) < 1e-5


@pytest.mark.parametrize(
    "optimizer", [OPTIMIZERS["nesterov clipped"], OPTIMIZERS["adamw clipped"]], ids=["sgd", "adamw"]
)
# torch keeps one level of forward-mode derivatives for all threads, so `forward_over_reverse` needs real processes
@pytest.mark.parametrize("engine", ["store", "recompute", *APPROXIMATIONS])
def test_shares_of_two_workers_sum_to_the_whole(make_problem, run_on_two_workers, engine, optimizer):
    p = in_the_midst(make_problem, optimizer, norm="group")
    whole = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine)
    replicas = [make_problem(norm="group") for _ in range(2)]  # a module cannot be called from two threads at once

    def cut(batch, rank):
        part = slice(0, 4) if rank == 0 else slice(4, None)
        return Batch(*(field[part] for field in batch))

    def work(group):
        own = replicas[group.rank]
        problem = InnerProblem(own.inner_loss, own.outer_error, group, optimizer)
        batches = [cut(batch, group.rank) for batch in p.batches]
        return hypergradient(problem, p.start, p.phi, batches, cut(p.val, group.rank), rates=p.rates, engine=engine)

    results = run_on_two_workers(work)
    tolerance = 1e-10 if engine != "finite_difference" else 1e-6
    assert relative_error(results[0].gradient + results[1].gradient, whole.gradient) < tolerance
    assert torch.equal(results[0].student.theta, results[1].student.theta)
    assert relative_error(results[1].student.theta, whole.student.theta) < 1e-12
    for name, tensor in whole.student.carried.items():
        torch.testing.assert_close(results[1].student.carried[name], tensor)


@of_every_kind
def test_a_horizon_cuts_the_derivative_at_a_step(make_problem, optimizer):
    p = in_the_midst(make_problem, optimizer)
    whole = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, horizon=2)
    before = hypergradient(p.problem, p.start, p.phi, p.batches[:3], p.val, rates=p.rates[:3]).student
    last = naive_hypergradient(p.problem, before, p.phi, p.batches[3:], p.val, rates=p.rates[3:])
    assert relative_error(whole.gradient, last.gradient) < 1e-10


@of_every_kind
def test_engines_take_the_same_steps_to_the_last_bit(make_problem, optimizer):
    p = in_the_midst(make_problem, optimizer)
    ends = [
        hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates, engine=engine).student.theta
        for engine in ENGINES
    ]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@of_every_kind
def test_a_step_costs_one_product_on_the_way_back(make_problem, monkeypatch, optimizer):
    calls = []

    def count(name):
        real = getattr(StoreEngine, name)
        monkeypatch.setattr(StoreEngine, name, lambda self, along: (calls.append(name), real(self, along))[1])

    count("products")
    count("mixed_product")
    p = in_the_midst(make_problem, optimizer)
    hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates)
    assert calls == ["products"] * 4 + ["mixed_product"]


# -- steps


def torchs(optimizer: Optimizer, parameter):
    if isinstance(optimizer, Sgd):
        options = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        return torch.optim.SGD([parameter], lr=1.0, weight_decay=optimizer.weight_decay, **options)
    kind = torch.optim.AdamW if optimizer.decoupled else torch.optim.Adam
    return kind([parameter], lr=1.0, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize(
    "optimizer",
    [o for o in OPTIMIZERS.values() if not getattr(o, "eps_root", 0)],
    ids=[name for name, o in OPTIMIZERS.items() if not getattr(o, "eps_root", 0)],
)
def test_steps_are_those_of_torch(optimizer, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=generator, dtype=torch.float64).to(dtype)
    student, parameter = optimizer.begin(theta, {}), torch.nn.Parameter(theta.clone())
    reference = torchs(optimizer, parameter)
    for step in range(20):
        gradient = (torch.randn(50, generator=generator, dtype=torch.float64) * 0.2 ** (step % 3)).to(dtype)
        rate = 0.1 / (1 + step)
        student, _ = optimizer.step(student, gradient, rate)
        norm = gradient.norm()
        # torch's own clipping adds 1e-6 to the norm
        parameter.grad = gradient * (optimizer.clip / norm) if optimizer.clip and norm > optimizer.clip else gradient
        reference.param_groups[0]["lr"] = rate
        reference.step()
    assert relative_error(student.theta, parameter.detach()) < tolerance


def test_a_gradient_that_is_short_enough_stays_as_it_is_to_the_last_bit():
    gradient = torch.randn(20, generator=torch.Generator().manual_seed(0))
    start = Sgd().begin(torch.zeros(20), {})
    steps = [Sgd(clip=clip).step(start, gradient, 0.3)[0].theta for clip in (None, 100.0)]
    assert torch.equal(*steps)
    clipped = Sgd(clip=0.5).step(start, gradient, 1.0)[0].theta
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.5))


def test_a_step_leaves_the_student_that_it_is_given_alone():
    start = Adam().begin(torch.ones(3), {})
    Adam().step(start, torch.ones(3), 0.1)
    assert (
        start.carried[NUM_STEPS] == 0
        and not start.carried[SECOND_MOMENT].any()
        and torch.equal(start.theta, torch.ones(3))
    )


def test_only_a_decay_in_the_gradient_is_a_term_of_the_loss():
    coupled, decoupled = Adam(weight_decay=0.1), Adam(weight_decay=0.1, decoupled=True)
    assert (Sgd(weight_decay=0.1).loss_decay, coupled.loss_decay, decoupled.loss_decay) == (0.1, 0.1, 0.0)
    assert coupled.without_loss_decay() == Adam() and decoupled.without_loss_decay() == decoupled
    assert Sgd(0.9, 0.1, clip=1.0).without_loss_decay() == Sgd(0.9, clip=1.0)


# -- where a root has no derivative


def sparse_problem(optimizer, is_used):
    """Student loss sum |u_k * (theta - phi)|^3: entry i has a gradient at step k if u_k[i] is 1, and none before."""

    def inner_loss(theta, phi, buffers, batch):
        logits = (batch.inputs * (theta - phi))[None]
        return logits.abs().pow(3).sum(), logits

    def outer_error(theta, buffers, batch):
        return (theta - 0.3).square().sum()

    generator = torch.Generator().manual_seed(1)
    theta, phi = torch.randn(2, len(is_used[0]), generator=generator, dtype=torch.float64)
    none = torch.zeros(1, dtype=torch.int64)
    batches = [Batch(torch.tensor(used, dtype=torch.float64), none, torch.ones(1), none) for used in is_used]
    problem = InnerProblem(inner_loss, outer_error, SingleProcess(), optimizer)
    return problem, optimizer.begin(theta, {}), phi, batches


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("decoupled", [False, True])
def test_entries_that_have_had_no_gradient_do_no_harm(engine, decoupled):
    optimizer = Adam(eps=1e-3, weight_decay=1e-2 if decoupled else 0.0, decoupled=decoupled, clip=2.0)
    used = [[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0]]
    problem, start, phi, batches = sparse_problem(optimizer, used)
    rates = [0.1] * 4
    expected = naive_hypergradient(problem, start, phi, batches, batches[0], rates=rates).gradient
    actual = hypergradient(problem, start, phi, batches, batches[0], rates=rates, engine=engine)
    assert relative_error(actual.gradient, expected) < 1e-10
    assert expected[:2].abs().min() > 1e-3 and expected[2] == 0
    assert (actual.student.theta[2] == start.theta[2]) != decoupled  # where nothing is learned, there is decay alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_gradient_of_zero_a_step_has_the_slope_of_its_limit(dtype):
    """The first step is theta - alpha g / (|g| + eps), whose slope at g = 0 is -alpha / eps."""
    optimizer, rate = Adam(eps=1e-2), 0.1
    zero = torch.zeros(1, dtype=dtype)
    slopes = []
    for value in (0.0, 1e-12):
        gradient = torch.full((1,), value, dtype=dtype, requires_grad=True)
        moved, trace = optimizer.step(optimizer.begin(zero, {}), gradient, rate)
        (slope,) = torch.autograd.grad(moved.theta, gradient)
        from_back, _ = optimizer.back(Costates.at_end(torch.ones(1, dtype=dtype)), trace)
        slopes += [slope, from_back]
    for slope in slopes:
        torch.testing.assert_close(slope, torch.full((1,), -rate / 1e-2, dtype=dtype), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-12, 1.0, 1e12])
def test_in_single_precision_the_way_back_stays_finite_whatever_the_size_of_a_gradient(scale):
    optimizer = Adam()
    generator = torch.Generator().manual_seed(0)
    student, traces = optimizer.begin(torch.zeros(30), {}), []
    for _ in range(4):
        student, trace = optimizer.step(student, scale * torch.randn(30, generator=generator), 1e-3)
        traces.append(trace)
    costates = Costates.at_end(torch.ones(30))
    for trace in reversed(traces):
        along, before = optimizer.back(costates, trace)
        assert along.isfinite().all()
        costates = before(torch.zeros(30))
    assert student.theta.isfinite().all()
