"""Whole rounds of L2T-DLN against plain autograd, written out here from the method's description.

The rendering below shares no code with the package but the student's `nn.Module`: the loss network is a list of
matrices read on rows `[p_y, p_j, 1, 0]`, the LSTM a textbook step, every graph is kept, and psi's gradient is taken by
one backward pass through the second unroll, phi' and the LSTM.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from l2t_ray.bilevel.engines import ENGINES
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import naive_hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.memory import DECAY, Memory
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.reweight import ClassCenters, Reweighting
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.interfaces import Batch, DivergenceError, RoundBatches, Term
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification

NUM_CLASSES, NUM_STEPS, HIDDEN, LAYERS = 3, 3, 5, 3
RATE, BETA, ZETA = 0.3, 0.05, 1e-2


class SmallStudent(nn.Module):
    """Batch normalisation and tanh, with the features before the last layer on request."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = norm(6)
        self.last = nn.Linear(6, NUM_CLASSES)

    def forward(self, x, with_embedding=False):
        features = self.norm(self.first(x)).tanh()
        return (self.last(features), features) if with_embedding else self.last(features)


def make_student(norm=nn.BatchNorm1d):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SmallStudent(norm).double()


def make_batch(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(n, 4, generator=generator, dtype=torch.float64),
        torch.arange(n) % NUM_CLASSES,
        torch.full((n,), 1 / n, dtype=torch.float64),
        torch.arange(n),
    )


class RandomData:
    """Serves rounds by number; ten rounds an epoch unless said. Remembers when the validation part was asked for."""

    num_classes = NUM_CLASSES

    def __init__(self, rounds_per_epoch=10):
        self._rounds_per_epoch = rounds_per_epoch
        self.asked: list[int] = []

    def round(self, index):
        train = [make_batch(7, seed=100 * index + k) for k in range(NUM_STEPS)]
        return RoundBatches(train, make_batch(8, seed=100 * index + 99))

    def epoch(self, index):
        return index // self._rounds_per_epoch

    def validation(self, epoch):
        self.asked.append(epoch)
        return [make_batch(n, seed=9000 + 10 * epoch + n) for n in (5, 6)]

    def test(self):
        return []


def make_loss_network(**options):
    return DynamicLossNetwork(HIDDEN, LAYERS, seed=1, **options).double()


def make_objective(loss_network, *, sgd=None, data=None, task=None, student=None, group=None, **options):
    sgd, data = sgd or StudentSchedule(lambda step: RATE, NUM_STEPS), data or RandomData()
    student, group = student or make_student(), group or SingleProcess()
    trainee = Trainee(FlatModule(student), task or Classification(), sgd, group)
    if reweighting := options.pop("reweighting", None):
        options["centers"] = ClassCenters(reweighting, trainee, data)
    if num_images := options.pop("num_images", None):
        options["memory"] = Memory(trainee, num_images, NUM_CLASSES)
    return LearnedObjective(trainee, PairLoss(loss_network, trainee.task), **options)


def make_method(teacher, loss_network, *, schedule="pipelined", **options):
    own = {key: options.pop(key) for key in ("engine", "horizon", "per_rate", "keeps_buffers") if key in options}
    return L2TDLN(make_objective(loss_network, **options), teacher, schedule=schedule, **own)


def lstm_method(schedule="lookahead", horizon=1, **options):
    loss_network = make_loss_network()
    lstm = LSTMTeacher((4, 3, 1), seed=2).double()
    phi = loss_network.phi.detach()
    rule = LstmRule(lstm, phi.numel(), step_size=BETA, learning_rate=ZETA, horizon=horizon)
    teacher = LocalTeacher(phi, rule)
    return make_method(teacher, loss_network, schedule=schedule, **options), teacher, lstm, phi


def adam_method(schedule="pipelined", **options):
    loss_network = make_loss_network(**options.pop("loss_options", {}))
    phi = loss_network.phi.detach()
    teacher = LocalTeacher(phi, AdamRule(phi.numel(), step_size=BETA, dtype=torch.float64))
    return make_method(teacher, loss_network, schedule=schedule, **options), teacher, phi


def run(method, num_rounds, data=None, state=None, start=0):
    data = data or RandomData()
    state = state or method.init()
    metrics = []
    for index in range(start, start + num_rounds):
        state, numbers = method.round(state, data.round(index), index)
        metrics.append(numbers)
    return state, metrics


# -- what is constant in a round


def test_trusted_images_are_under_cross_entropy():
    is_clean = torch.tensor([True, False, True, False, False, False, True, False])
    method, _, phi = adam_method(is_clean=is_clean)
    student, batch = method.init().student, make_batch(7, seed=5)
    problem = method.objective.first_problem(RandomData().round(0))
    loss, logits = problem.inner_loss(student.theta, phi, student.buffers, batch)
    rows = torch.where(
        is_clean[:7],
        F.cross_entropy(logits, batch.targets, reduction="none"),
        make_loss_network().losses_at(phi, logits, batch.targets),
    )
    torch.testing.assert_close(loss, rows.mean())


# -- the memory, and a loss without a teacher

MEMORY = {"label_table": NUM_CLASSES, "pairs": "softmax", "activation": "silu", "memory": 2.0}


def answers(student, batch):
    return functional_call(make_student().eval(), {**named(student.theta), **student.buffers}, (batch.inputs,)).softmax(
        1
    )


def named(theta):
    return FlatModule(make_student()).views(theta)


def test_a_rounds_images_are_remembered_as_the_student_saw_them_before_it():
    """Batches share images here: each counts once a round, with the mean of its answers."""
    method, _, _ = adam_method(loss_options=MEMORY, num_images=10)
    first = method.init()
    second, _ = run(method, 1)
    third, _ = run(method, 1, state=second, start=1)
    assert first.extra["memory"].shape == (10, NUM_CLASSES) and not first.extra["memory"].any()
    expected = torch.zeros(10, NUM_CLASSES, dtype=torch.float64)
    for index, state in enumerate((first, second)):
        mean = sum(answers(state.student, batch) for batch in RandomData().round(index).train) / NUM_STEPS
        expected[:7] = DECAY * expected[:7] + (1 - DECAY) * mean
    torch.testing.assert_close(third.extra["memory"].double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_say_how_much_the_memory_counts():
    method, _, _ = adam_method(loss_options=MEMORY, num_images=10)
    _, (first, second, _) = run(method, 3)
    assert first["memory_weight"] == pytest.approx(2.0)
    assert second["memory_weight"] != first["memory_weight"]
    _, (row,) = run(adam_method()[0], 1)
    assert "memory_weight" not in row


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", ["pipelined", "lookahead"])
def test_the_hypergradient_knows_the_memory(schedule, engine):
    """Both unrolls against autograd through all steps, with the memory's term written out beside the loss network's.
    A trusted image has neither."""
    proposed, learned = [], []

    class Listening(AdamRule):
        def propose(self, gradient):
            proposed.append(gradient.clone())
            return super().propose(gradient)

        def learn(self, gradient):
            learned.append(gradient.clone())

    network, is_clean = make_loss_network(**MEMORY), torch.arange(10) == 4
    phi = network.phi.detach()
    teacher = LocalTeacher(phi, Listening(phi.numel(), step_size=BETA, dtype=torch.float64))
    options = {"schedule": schedule, "engine": engine, "num_images": 10, "is_clean": is_clean}
    method = make_method(teacher, network, **options)
    state, _ = run(method, 2)
    batches, before = RandomData().round(2), teacher.read().phi
    memory = state.extra["memory"].double()
    mean = sum(answers(state.student, batch) for batch in batches.train) / NUM_STEPS
    memory[:7] = DECAY * memory[:7] + (1 - DECAY) * mean
    bare = make_loss_network(**{**MEMORY, "memory": None})
    split = phi.numel() - NUM_CLASSES**2 - 1

    def inner_loss(theta, phi, buffers, batch):
        logits = functional_call(make_student(), {**named(theta), **buffers}, (batch.inputs,))
        rest = torch.cat((phi[:split], phi[split + 1 :]))
        weight = 4 * (10 * phi[split]).sigmoid()
        agreement = (1 - (logits.softmax(1) * memory[batch.indices]).sum(1)).log()
        losses = bare.losses_at(rest, logits, batch.targets) + weight * agreement
        losses[4] = F.cross_entropy(logits[4], batch.targets[4])
        return losses.mean(), logits

    def expected(phi):
        problem = replace(method.objective.first_problem(batches), inner_loss=inner_loss)
        rates = [RATE] * NUM_STEPS
        return naive_hypergradient(problem, state.student, phi, batches.train, batches.val, rates=rates).gradient

    run(method, 1, state=state, start=2)
    assert abs(proposed[-1][split]) > 1e-6  # the weight of the memory is learned
    torch.testing.assert_close(proposed[-1], expected(before), rtol=1e-5, atol=1e-8)
    if schedule == "lookahead":
        torch.testing.assert_close(learned[-1], expected(teacher.read().phi), rtol=1e-5, atol=1e-8)


def test_a_samples_weight_knows_the_memory():
    method, teacher, _ = adam_method(loss_options=MEMORY, num_images=10)
    state, _ = run(method, 2)
    batch = make_batch(7, seed=5)
    p = answers(state.student, batch).detach()
    logits = p.log().requires_grad_()
    losses = make_loss_network(**MEMORY).losses_at(
        teacher.read().phi, logits, batch.targets, state.extra["memory"][batch.indices]
    )
    (push,) = torch.autograd.grad(losses.sum(), logits)
    expected = push.norm(dim=1) / (p - F.one_hot(batch.targets, NUM_CLASSES)).norm(dim=1)
    torch.testing.assert_close(method.sample_weights(state, batch, 2), expected)


class WithATerm(Classification):
    kinds: ClassVar = {"cross_entropy": ("a", "b", "c")}

    def terms(self, outputs, batch):
        terms = super().terms(outputs, batch)
        losses = F.cross_entropy(outputs, batch.targets, reduction="none")
        return terms._replace(
            values={"cross_entropy": Term(losses, batch.weights, batch.targets, torch.arange(len(losses)))}
        )


def test_a_loss_that_reads_terms_says_no_sample_weights():
    trainee = Trainee(
        FlatModule(make_student()), WithATerm(), StudentSchedule(lambda step: RATE, NUM_STEPS), SingleProcess()
    )
    objective = LearnedObjective(trainee, TermLoss.for_task(trainee.task))
    state, batch = objective.init(), make_batch(5, seed=1)
    assert objective.sample_weights(objective.initial_phi(), state, batch) is None
    pairs = LearnedObjective(trainee, PairLoss(make_loss_network(), trainee.task))
    assert pairs.sample_weights(pairs.initial_phi(), pairs.init(), batch).shape == (5,)


def test_a_loss_with_a_memory_is_refused_without_one():
    with pytest.raises(ValueError, match="a loss with a memory needs one"):
        adam_method(loss_options=MEMORY)


# -- the rendering


def plain_loss(phi, logits, labels, activation=F.leaky_relu):
    """Mean over all real pairs of a bias-free network on `[p_y, p_j, 1, 0]`."""
    widths = [4, *[HIDDEN] * (LAYERS - 1), 1]
    matrices, start = [], 0
    for inputs, outputs in pairwise(widths):
        matrices.append(phi[start : start + inputs * outputs].view(outputs, inputs))
        start += inputs * outputs
    p = logits.sigmoid()
    rows = [
        torch.stack((p[i, y], p[i, j], p.new_tensor(1.0), p.new_tensor(0.0)))
        for i, y in enumerate(labels.tolist())
        for j in range(NUM_CLASSES)
        if j != y
    ]
    x = torch.stack(rows)
    for matrix in matrices[:-1]:
        x = activation(x @ matrix.T)
    return (x @ matrices[-1].T).mean()


def plain_unroll(net, weights, velocity, buffers, phi, batches, rates, momentum=0.0, weight_decay=0.0):
    """SGD as in torch (no dampening), graph kept. `buffers` move."""
    for batch, rate in zip(batches.train, rates, strict=True):
        logits = functional_call(net, ({**weights, **buffers}), (batch.inputs,))
        loss = plain_loss(phi, logits, batch.targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        new_weights, new_velocity = {}, {}
        for (name, w), gradient in zip(weights.items(), gradients, strict=True):
            new_velocity[name] = momentum * velocity[name] + gradient + weight_decay * w
            new_weights[name] = w - rate * new_velocity[name]
        weights, velocity = new_weights, new_velocity
    aside = {name: b.clone() for name, b in buffers.items()}
    logits = functional_call(net, ({**weights, **aside}), (batches.val.inputs,))
    return weights, velocity, F.cross_entropy(logits, batches.val.targets)


def fresh(mapping):
    return {name: value.detach().clone() for name, value in mapping.items()}


def leaves(mapping):
    return {name: value.detach().clone().requires_grad_() for name, value in mapping.items()}


def start_of(net):
    weights = fresh(dict(net.named_parameters()))
    return weights, {name: torch.zeros_like(w) for name, w in weights.items()}, fresh(dict(net.named_buffers()))


def plain_lstm(psi, x, state):
    """`psi`: (W_ih, W_hh, b_ih, b_hh) of each cell in turn."""
    new_state = []
    for k, (h, c) in enumerate(state):
        w_ih, w_hh, b_ih, b_hh = psi[4 * k : 4 * k + 4]
        i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        x = o.sigmoid() * c.tanh()
        new_state.append((x, c))
    return x[:, 0], new_state


def plain_pre(g):
    large = g.abs() >= math.exp(-10)
    return torch.stack(
        (
            torch.where(large, g.abs().clamp(min=1e-300).log() / 10, torch.tensor(-1.0, dtype=g.dtype)),
            torch.where(large, g.sign(), math.exp(10) * g),
        ),
        dim=1,
    )


def assert_close(actual, expected, tolerance=1e-10):
    """Relative error of the whole tensor. Two orders of summation in float64, some ten products deep."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm()


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


# -- the released round


@pytest.mark.parametrize("engine", ["store", "recompute", "forward_over_reverse"])
def test_lookahead_rounds_equal_plain_autograd_into_psi(engine):
    """Three rounds: probe unroll, LSTM step, second unroll from the same start on the same batches, Adam on psi."""
    method, teacher, lstm, phi = lstm_method(engine=engine)
    data, state = RandomData(), method.init()

    net = make_student()
    weights, velocity, buffers = start_of(net)
    psi = [p.detach().clone().requires_grad_() for p in lstm.parameters()]
    adam = torch.optim.Adam(psi, lr=ZETA)
    lstm_state = [(torch.zeros(len(phi), h).double(), torch.zeros(len(phi), h).double()) for h in (4, 3, 1)]

    for index in range(3):
        batches = data.round(index)
        rates = [RATE] * NUM_STEPS
        phi = phi.detach().requires_grad_()
        _, _, probe_error = plain_unroll(net, leaves(weights), velocity, fresh(buffers), phi, batches, rates)
        (g,) = torch.autograd.grad(probe_error, phi)
        output, lstm_state = plain_lstm(psi, plain_pre(g.detach()), lstm_state)
        new_phi = phi.detach() - BETA * output
        new_weights, _, error = plain_unroll(net, leaves(weights), velocity, buffers, new_phi, batches, rates)
        adam.zero_grad()
        error.backward(inputs=psi)
        assert flat(p.grad for p in psi).norm() > 1e-8  # there is something to compare
        adam.step()
        weights, phi = fresh(new_weights), new_phi.detach()
        lstm_state = [(h.detach(), c.detach()) for h, c in lstm_state]

        before = teacher.read().phi
        state, metrics = method.round(state, batches, index)
        rule = teacher.state_dict()["rule"]
        assert_close(state.student.theta, flat(weights.values()))
        assert_close(teacher.read().phi, phi)
        assert_close(rule["psi"], flat(psi))
        for pair, expected in zip(rule["state"], lstm_state, strict=True):
            assert_close(pair[0], expected[0])
            assert_close(pair[1], expected[1])
        for name, buffer in buffers.items():
            torch.testing.assert_close(state.student.buffers[name], buffer)
        assert metrics["val_error"] == pytest.approx(error.item(), rel=1e-10)
        assert metrics["hypergradient_norm"] == pytest.approx(g.norm().item(), rel=1e-10)
        assert metrics["phi_step_norm"] == pytest.approx((phi - before).norm().item(), rel=1e-10)
        assert metrics["phi_step_max"] == pytest.approx((phi - before).abs().max().item(), rel=1e-10)


# -- the pipelined schedule


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 1e-2)])
def test_pipelined_rounds_equal_plain_autograd_with_adam_on_phi(momentum, weight_decay):
    """Four rounds with a learning rate that changes at each step: theta_K of the one unroll is kept."""

    def rate(step):
        return 0.3 / (1 + step)

    sgd = StudentSchedule(rate, NUM_STEPS, Sgd(momentum, weight_decay))
    method, teacher, phi = adam_method(sgd=sgd)
    data, state = RandomData(), method.init()

    net = make_student()
    weights, velocity, buffers = start_of(net)
    phi = phi.clone().requires_grad_()
    adam = torch.optim.Adam([phi], lr=BETA)
    for index in range(4):
        batches = data.round(index)
        rates = [rate(NUM_STEPS * index + k) for k in range(NUM_STEPS)]
        weights, velocity, error = plain_unroll(
            net, leaves(weights), velocity, buffers, phi, batches, rates, momentum, weight_decay
        )
        (phi.grad,) = torch.autograd.grad(error, phi)
        adam.step()
        weights, velocity = fresh(weights), fresh(velocity)

        state, metrics = method.round(state, batches, index)
        assert_close(state.student.theta, flat(weights.values()))
        assert_close(state.student.velocity, flat(velocity.values()))
        assert_close(teacher.read().phi, phi.detach())
        assert metrics["val_error"] == pytest.approx(error.item(), rel=1e-10)
        assert metrics["lr"] == rates[-1]
        for name, buffer in buffers.items():
            torch.testing.assert_close(state.student.buffers[name], buffer)


def test_pipelined_rounds_with_the_lstm_equal_plain_autograd():
    """Proposal t is judged by the hypergradient of round t + 1; Adam takes that step after proposal t + 1 is made."""
    method, teacher, lstm, phi = lstm_method("pipelined")
    data, state = RandomData(), method.init()

    net = make_student()
    weights, velocity, buffers = start_of(net)
    psi = [p.detach().clone().requires_grad_() for p in lstm.parameters()]
    adam = torch.optim.Adam(psi, lr=ZETA)
    lstm_state = [(torch.zeros(len(phi), h).double(), torch.zeros(len(phi), h).double()) for h in (4, 3, 1)]
    pending = None  # the last proposal and the weights that made it, with their graph
    for index in range(4):
        batches = data.round(index)
        phi = phi.detach().requires_grad_()
        weights, velocity, error = plain_unroll(
            net, leaves(weights), velocity, buffers, phi, batches, [RATE] * NUM_STEPS
        )
        weights, velocity = fresh(weights), fresh(velocity)
        (g,) = torch.autograd.grad(error, phi)
        used = [p.detach().clone().requires_grad_() for p in psi]
        output, lstm_state = plain_lstm(used, plain_pre(g), lstm_state)
        lstm_state = [(h.detach(), c.detach()) for h, c in lstm_state]
        proposal = phi.detach() - BETA * output
        if pending is not None:
            for p, gradient in zip(psi, torch.autograd.grad(pending[0], pending[1], g), strict=True):
                p.grad = gradient
            adam.step()
        pending, phi = (proposal, used), proposal.detach()

        state, _ = method.round(state, batches, index)
        assert_close(state.student.theta, flat(weights.values()))
        assert_close(teacher.read().phi, phi)
        assert_close(teacher.state_dict()["rule"]["psi"], flat(psi))


def test_momentum_and_weight_decay_are_those_of_torch_sgd():
    """One round under the loss that the network is, stepped by torch.optim.SGD."""
    sgd = StudentSchedule(lambda step: 0.2, NUM_STEPS, Sgd(momentum=0.8, weight_decay=0.05))
    method, _, phi = adam_method(sgd=sgd)
    state, _ = run(method, 1)
    net = make_student().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.8, weight_decay=0.05)
    for batch in RandomData().round(0).train:
        optimizer.zero_grad()
        plain_loss(phi, net(batch.inputs), batch.targets).backward()
        optimizer.step()
    # torch's weight decay enters the velocity as ours does; only the order of sums differs
    assert_close(state.student.theta, flat(net.parameters()))
    assert_close(state.student.velocity, flat(s["momentum_buffer"] for s in optimizer.state.values()))


def test_the_engine_asked_for_is_the_one_that_runs(monkeypatch):
    """All engines agree, so the choice shows in nothing but which one is built."""
    built = []

    class Noted(ENGINES["recompute"]):
        def __init__(self, *args):
            built.append("recompute")
            super().__init__(*args)

    monkeypatch.setitem(ENGINES, "recompute", Noted)
    run(adam_method(engine="store")[0], 1)
    assert built == []
    run(adam_method("lookahead", engine="recompute")[0], 1)
    assert built == ["recompute", "recompute"]


class SharedTeacher:
    """Each worker's replica of the teacher, given the sums over workers of what they were given."""

    def __init__(self, teacher, group):
        self._teacher, self._group = teacher, group

    def begin(self, state):
        assert state is None

    def read(self):
        return self._teacher.read()

    def propose(self, version, hypergradient, error):
        total = self._group.sum(torch.tensor([error], dtype=torch.float64)).item()
        return self._teacher.propose(version, self._group.sum(hypergradient), total)

    def learn(self, version, hypergradient=None):
        self._teacher.learn(version, None if hypergradient is None else self._group.sum(hypergradient))

    def state_dict(self):
        return self._teacher.state_dict()

    def load_state_dict(self, state):
        self._teacher.load_state_dict(state)


def part_of(batch, rank):
    return Batch(*(field[:3] if rank == 0 else field[3:] for field in batch))


class PartOfData(RandomData):
    """A worker's slices: three samples of each batch, or the rest."""

    def __init__(self, rank):
        super().__init__()
        self._rank = rank

    def round(self, index):
        train, val = super().round(index)
        return RoundBatches([part_of(batch, self._rank) for batch in train], part_of(val, self._rank))

    def validation(self, epoch):
        return [part_of(batch, self._rank) for batch in super().validation(epoch)]


@pytest.mark.parametrize("reweighting", [None, Reweighting("snr", "softplus", refresh_every=2)])
@pytest.mark.parametrize("schedule", ["lookahead", "pipelined"])
def test_two_workers_take_the_rounds_of_one(run_on_two_workers, schedule, reweighting):
    """Without batch statistics, which are a worker's own."""

    def work_for(group, data):
        loss_network, lstm = make_loss_network(), LSTMTeacher((4, 3, 1), seed=2).double()
        phi = loss_network.phi.detach()
        rule = LstmRule(lstm, phi.numel(), step_size=BETA, learning_rate=ZETA, horizon=2)
        sgd = StudentSchedule(lambda step: RATE, NUM_STEPS, Sgd(0.9, 1e-2))
        student, teacher = make_student(nn.Identity), SharedTeacher(LocalTeacher(phi, rule), group)
        options = {"sgd": sgd, "student": student, "data": data, "group": group, "reweighting": reweighting}
        return make_method(teacher, loss_network, schedule=schedule, **options), teacher

    method, teacher = work_for(SingleProcess(), RandomData())
    state, metrics = run(method, 5)
    # Modules are built here, one after the other: their seeds pass through the global generator.
    data = [PartOfData(rank) for rank in range(2)]
    gathered = run_on_two_workers(lambda group: group)  # a group outlives the run that made it
    replicas = {group.rank: work_for(group, data[group.rank]) for group in gathered}

    def work(group):
        own, own_teacher = replicas[group.rank]
        own_state, own_metrics = run(own, 5, data[group.rank])
        return own_state, own_metrics, own_teacher.state_dict()

    for own_state, own_metrics, own_teacher in run_on_two_workers(work):
        assert_close(own_state.student.theta, state.student.theta)
        assert_close(own_state.student.velocity, state.student.velocity)
        assert_close(own_teacher["phi"], teacher.state_dict()["phi"])
        assert_close(own_teacher["rule"]["psi"], teacher.state_dict()["rule"]["psi"])
        for numbers, expected in zip(own_metrics, metrics, strict=True):
            assert numbers == pytest.approx(expected, rel=1e-9)


def test_hypergradient_horizon_reaches_the_engine():
    full, teacher, _ = adam_method()
    checkpoint, cut_teacher, _ = adam_method(horizon=1)
    _, (metrics,) = run(full, 1)
    _, (cut_metrics,) = run(checkpoint, 1)
    assert metrics["val_error"] == cut_metrics["val_error"]
    assert metrics["hypergradient_norm"] != pytest.approx(cut_metrics["hypergradient_norm"], rel=1e-3)
    assert not torch.equal(teacher.read().phi, cut_teacher.read().phi)


def test_hypergradients_by_the_rate_do_not_fall_with_it():
    sgd = StudentSchedule(lambda step: RATE / (1 + step), NUM_STEPS)
    (whole, _, _), (divided, _, _) = adam_method(sgd=sgd), adam_method(sgd=sgd, per_rate=True)
    _, (metrics,) = run(whole, 1)
    _, (by_rate,) = run(divided, 1)
    mean = sum(sgd.rates(0, NUM_STEPS)) / NUM_STEPS
    assert by_rate["hypergradient_norm"] == pytest.approx(metrics["hypergradient_norm"] / mean)
    assert by_rate["val_error"] == metrics["val_error"]


@pytest.mark.parametrize(("free", "chosen"), [(1 << 40, "store"), (1 << 10, "recompute")])
def test_engine_auto_goes_by_memory_and_says_so(monkeypatch, caplog, free, chosen):
    monkeypatch.setattr("l2t_ray.bilevel.engine_choice.free_bytes", lambda device: free)
    method, _, _ = adam_method(engine="auto")
    same, _, _ = adam_method(engine=chosen)
    with caplog.at_level("INFO", logger="l2t_ray"):
        state, metrics = run(method, 2)
    expected, expected_metrics = run(same, 2)
    assert metrics == expected_metrics
    assert torch.equal(state.student.theta, expected.student.theta)
    (record,) = [r for r in caplog.records if r.name.startswith("l2t_ray")]  # once, not each round
    assert record.getMessage().startswith(f"engine: {chosen} (")


def test_round_leaves_its_state_alone_and_repeats_itself():
    first, _, _, _ = lstm_method()
    second, _, _, _ = lstm_method()
    state = first.init()
    theta = state.student.theta.clone()
    buffers = fresh(state.student.buffers)
    after, _ = run(first, 1, state=state)
    assert torch.equal(state.student.theta, theta)
    assert all(torch.equal(state.student.buffers[name], b) for name, b in buffers.items())
    again, _ = run(second, 1)
    assert torch.equal(after.student.theta, again.student.theta)


# -- batch-norm buffers


@pytest.mark.parametrize("schedule", ["lookahead", "pipelined"])
def test_buffers_move_once_a_committed_step(schedule):
    method, _, _ = adam_method(schedule)
    state, _ = run(method, 2)
    buffers = state.student.buffers
    assert buffers["norm.num_batches_tracked"] == 2 * NUM_STEPS
    assert buffers["norm.running_mean"].abs().min() > 0


@pytest.mark.parametrize("schedule", ["lookahead", "pipelined"])
def test_dropped_buffers_stay_as_initialised_and_change_nothing_else(schedule):
    """The released code's defect: it trains a copy and copies back parameters alone."""
    kept, _ = run(adam_method(schedule)[0], 2)
    dropped, _ = run(adam_method(schedule, keeps_buffers=False)[0], 2)
    assert torch.equal(dropped.student.theta, kept.student.theta)
    assert torch.equal(dropped.student.buffers["norm.running_mean"], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(dropped.student.buffers["norm.running_var"], torch.ones(6, dtype=torch.float64))
    assert dropped.student.buffers["norm.num_batches_tracked"] == 0


# -- reweighting


class RecordingTask(Classification):
    """Classification that remembers the weights of the training rows."""

    def __init__(self):
        self.weights: list[torch.Tensor] = []

    def terms(self, outputs, batch):
        self.weights.append(batch.weights.clone())
        return super().terms(outputs, batch)


def reweighted_method(data, schedule="pipelined", **options):
    task = RecordingTask()
    method, teacher, _ = adam_method(schedule, data=data, task=task, reweighting=Reweighting("cosine", **options))
    return method, teacher, task


def plain_features(theta, buffers, inputs):
    """Features in evaluation mode, in numpy, from the flat weights in order."""
    theta, buffers = theta.numpy(), {name: b.numpy() for name, b in buffers.items()}
    weight, bias, gamma, beta = theta[:24].reshape(6, 4), theta[24:30], theta[30:36], theta[36:42]
    x = inputs.numpy() @ weight.T + bias
    x = (x - buffers["norm.running_mean"]) / np.sqrt(buffers["norm.running_var"] + 1e-5)
    return np.tanh(gamma * x + beta)


def plain_centers(state, data, epoch):
    batches = [make_batch(n, seed=9000 + 10 * epoch + n) for n in (5, 6)]
    features = np.concatenate([plain_features(*state.student[::2], batch.inputs) for batch in batches])
    labels = np.concatenate([batch.targets.numpy() for batch in batches])
    return np.stack([features[labels == c].mean(axis=0) for c in range(NUM_CLASSES)])


def test_weights_are_each_samples_likeness_to_its_class_centre():
    data = RandomData()
    method, _, task = reweighted_method(data)
    state = method.init()
    after, _ = run(method, 1, data, state)
    centers = plain_centers(state, data, 0)
    np.testing.assert_allclose(after.extra["centers"].numpy(), centers, rtol=1e-10)
    assert len(task.weights) == NUM_STEPS
    for weights in task.weights:
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert (weights > 0).all() and weights.std() > 1e-3
    batch = data.round(0).train[0]  # the first step starts from `state`
    features, own = plain_features(*state.student[::2], batch.inputs), centers[batch.targets.numpy()]
    cosine = (features * own).sum(1) / (np.linalg.norm(features, axis=1) * np.linalg.norm(own, axis=1))
    raw = np.maximum(cosine, 1e-6)
    np.testing.assert_allclose(task.weights[0].numpy(), raw / raw.sum(), rtol=1e-9)


def test_weights_change_what_the_student_learns():
    plain, _ = run(adam_method()[0], 1)
    reweighted, _ = run(reweighted_method(RandomData())[0], 1)
    assert (plain.student.theta - reweighted.student.theta).norm() > 1e-4


def test_centres_are_refreshed_at_each_epoch_and_every_few_rounds():
    """Epochs of 5 rounds, a refresh every 3: rounds 0, 3, 5 (epoch 1), 6, 9, 10 (epoch 2)."""
    data = RandomData(rounds_per_epoch=5)
    method, _, _ = reweighted_method(data, refresh_every=3)
    state = method.init()
    refreshed = []
    for index in range(11):
        count, before = len(data.asked), state
        state, _ = method.round(state, data.round(index), index)
        if len(data.asked) > count:
            refreshed.append(index)
            expected = plain_centers(before, data, index // 5)
            np.testing.assert_allclose(state.extra["centers"].numpy(), expected, rtol=1e-10)
        else:
            assert torch.equal(state.extra["centers"], before.extra["centers"])
    assert refreshed == [0, 3, 5, 6, 9, 10]
    assert data.asked == [0, 0, 1, 1, 1, 2]


def test_a_class_missing_from_a_later_epoch_keeps_its_centre():
    class NoClassTwoLater(RandomData):
        def validation(self, epoch):
            batches = super().validation(epoch)
            return batches if epoch == 0 else [Batch(*(field[:2] for field in batch)) for batch in batches]

    data = NoClassTwoLater(rounds_per_epoch=1)
    method, _, _ = reweighted_method(data)
    first, _ = run(method, 1, data)
    second, _ = run(method, 1, data, first, start=1)
    assert torch.equal(second.extra["centers"][2], first.extra["centers"][2])
    assert not torch.equal(second.extra["centers"][0], first.extra["centers"][0])


def test_without_reweighting_the_validation_part_is_never_read():
    data = RandomData()
    method, _, _ = adam_method(data=data)
    state, _ = run(method, 2, data)
    assert data.asked == [] and state.extra == {}


# -- divergence


@pytest.mark.parametrize("schedule", ["lookahead", "pipelined"])
def test_a_round_that_diverges_says_so_and_leaves_the_teacher_alone(schedule):
    method, teacher, phi = adam_method(schedule)
    batches = RandomData().round(0)
    poisoned = batches.train[1]._replace(inputs=batches.train[1].inputs * float("inf"))
    with pytest.raises(DivergenceError, match=r"validation error or its hypergradient is not finite .error nan"):
        method.round(method.init(), batches._replace(train=[batches.train[0], poisoned, batches.train[2]]), 0)
    assert teacher.read().version == 0 and torch.equal(teacher.read().phi, phi)


def test_logged_logit_gradient_is_the_sum_over_the_minibatch():
    """Supplement, Fig. 1: sum of |dL/dz|, here of the last step's minibatch with a round of one step."""
    sgd = StudentSchedule(lambda step: RATE, 1)
    method, _, phi = adam_method(sgd=sgd)
    data = RandomData()
    batches = data.round(0)._replace(train=data.round(0).train[:1])
    _, metrics = method.round(method.init(), batches, 0)
    batch = batches.train[0]
    logits = make_student().train()(batch.inputs).detach().requires_grad_()
    loss = plain_loss(phi, logits, batch.targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert metrics["logit_gradient_sum"] == pytest.approx(gradient.abs().sum().item(), rel=1e-10)
    assert metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-10)
