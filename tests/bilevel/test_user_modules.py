"""Whatever the student's module does inside, it is trained as torch trains it, and its hypergradient is exact.

A kind of module is a line in `user_modules.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from user_modules import KINDS, NUM_CLASSES, TOKENS

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.bilevel.unroll import InnerProblem, plain_steps
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import Batch, StudentState
from l2t_ray.parallel.group import SingleProcess

MOMENTUM, WEIGHT_DECAY, RATE = 0.9, 1e-2, 0.05
BY_NAME = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
ALSO_OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy modules:UserWarning")


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind.make().double()


def batch(kind, seed, n=8):
    generator = torch.Generator().manual_seed(seed)
    if kind.input_shape[0] == TOKENS:
        inputs = torch.randint(TOKENS, (n, *kind.input_shape[1:]), generator=generator)
    else:
        inputs = torch.randn(n, *kind.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (n,), generator=generator)
    return Batch(inputs, labels, torch.full((n,), 1 / n, dtype=torch.float64), torch.arange(n))


def logits_of(output):
    return output.flatten(1)[:, :NUM_CLASSES]


def trained_by_torch(module, batches):
    optimizer = torch.optim.SGD(module.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    if all(part.training for part in module.modules()):  # else its owner has frozen some, and would not thaw them
        module.train()
    for b in batches:
        optimizer.zero_grad()
        F.cross_entropy(logits_of(module(b.inputs)), b.targets).backward()
        optimizer.step()
    return module


class Problem:
    """An inner problem on a module; with a learned loss, or on cross-entropy."""

    def __init__(self, module, *, learned):
        self.student, self.learned = FlatModule(module), learned
        self.loss_network = DynamicLossNetwork(hidden=6, layers=2, pairs="softmax", activation="silu")
        self.phi = self.loss_network.phi.detach().double()
        theta = self.student.initial()
        self.start = StudentState(theta, torch.zeros_like(theta), self.student.initial_buffers())
        self.problem = InnerProblem(self.inner_loss, self.error, SingleProcess(), Sgd(MOMENTUM, WEIGHT_DECAY))

    def logits(self, theta, buffers, batch):
        return logits_of(self.student(theta, buffers, batch.inputs, training=True))

    def inner_loss(self, theta, phi, buffers, batch):
        logits = self.logits(theta, buffers, batch)
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        if self.learned:
            losses = losses + self.loss_network.losses_at(phi, logits, batch.targets)
        return (batch.weights * losses).sum(), logits

    def error(self, theta, buffers, batch):
        return F.cross_entropy(self.logits(theta, buffers, batch), batch.targets)


@ALSO_OLD
@BY_NAME
def test_ten_steps_end_where_those_of_torch_do(kind):
    batches = [batch(kind, seed) for seed in range(10)]
    torch.manual_seed(1)
    expected = trained_by_torch(made(kind), batches)
    own = made(kind)
    problem = Problem(made(kind), learned=False)
    problem.student.check(problem.start.theta, problem.start.buffers, batches[0].inputs)
    torch.manual_seed(1)
    state, _ = plain_steps(problem.problem, problem.start, problem.phi, batches, [RATE] * len(batches))

    loaded = dict(problem.student.load(state.theta, state.buffers).state_dict())
    assert loaded.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=kind.precision, atol=kind.precision, msg=name)
    moved = {name for name, p in own.named_parameters() if not torch.equal(p, loaded[name])}
    assert moved == {name for name, p in own.named_parameters() if p.requires_grad and p.numel()}


@ALSO_OLD
@pytest.mark.parametrize("kind", [k for k in KINDS if k.has_second], ids=[k.name for k in KINDS if k.has_second])
def test_hypergradient_is_that_of_autograd_through_the_unroll(kind):
    problem = Problem(made(kind), learned=True)
    batches, val = [batch(kind, seed) for seed in range(2)], batch(kind, 9)

    def of(function, **options):
        torch.manual_seed(1)
        return function(problem.problem, problem.start, problem.phi, batches, val, rates=[RATE] * 2, **options)

    expected = of(naive_hypergradient)
    for engine in ("store",) if kind.is_random else ("store", "recompute"):  # which would draw anew
        actual = of(hypergradient, engine=engine)
        error = (actual.gradient - expected.gradient).norm() / expected.gradient.norm()
        assert expected.gradient.norm() > 1e-6 and error < kind.precision, engine
        for name, buffer in expected.student.buffers.items():
            torch.testing.assert_close(actual.student.buffers[name], buffer, rtol=kind.precision, atol=kind.precision)
