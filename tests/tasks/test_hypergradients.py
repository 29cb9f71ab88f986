"""Hypergradients of other tasks through the seam: equal to autograd through all steps of a rendering written here.

Pixels with ignored and chosen ones, under the pair network and under a combination of terms with curves; and a task of
several terms with no class decision. In float64, with every exact engine, on one worker and on two.
"""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from l2t_ray.bilevel.engines import ENGINES
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss, SoftMetricSpec
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.interfaces import Batch, Metric, RoundBatches, Term, Terms
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.segmentation import Segmentation
from l2t_ray.tasks.shares import share_of

CLASSES, SIZE, CHOSEN, STEPS, RATE, MOMENTUM, DECAY = ("a", "b", "c"), 5, 9, 3, 0.4, 0.9, 1e-2
IGNORE = 255


class PixelStudent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, len(CLASSES), 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())


class BoxStudent(nn.Module):
    """Takes its inputs by name, gives two things by name."""

    def __init__(self):
        super().__init__()
        self.body, self.where, self.what = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)

    def forward(self, points, scale):
        features = (self.body(points) * scale).tanh()
        return {"where": self.where(features), "what": self.what(features)[:, 0]}


class Boxes:
    """Where something is, in squares, and whether it is there: two terms of different numbers of rows."""

    name, row_is_example = "boxes", False
    metrics = (Metric("overlap", "overlap"),)
    kinds: Mapping = {"where": ("near", "far"), "what": ("all",)}

    def num_rows(self, targets):
        return torch.ones_like(targets["there"])

    def terms(self, outputs, batch):
        flat = torch.cat((outputs["where"], outputs["what"][:, None]), dim=1)
        there = batch.targets["there"].bool()
        owner = torch.arange(len(flat))
        squares = (flat[there, :2] - batch.targets["place"][there]).square().sum(dim=1)
        kinds = (batch.targets["place"][there, 0] > 0).long()
        what = F.binary_cross_entropy_with_logits(flat[:, 2], there.to(flat), reduction="none")
        return Terms(
            flat,
            None,
            {
                "where": Term(squares, 5 * batch.weights[there], kinds, owner[there]),
                "what": Term(what, batch.weights, torch.zeros_like(owner), owner),
            },
            rest=1e-2 * (batch.weights * flat.square().sum(dim=1)).sum(),
        )

    def error(self, outputs, batch, group):
        """A ratio of sums: no sum over examples itself."""
        there = batch.targets["there"].to(outputs["what"])
        hits = outputs["what"].sigmoid() * there
        return share_of(lambda s: 1 - s[0] / s[1], torch.stack((hits.sum(), outputs["what"].sigmoid().sum())), group)

    def score(self, outputs, batch):
        raise AssertionError

    def summarise(self, totals):
        raise AssertionError


def pixel_batch(n, seed):
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(len(CLASSES), (n, SIZE, SIZE), generator=g)
    mask[torch.rand(n, SIZE, SIZE, generator=g) < 0.3] = IGNORE
    mask[0] = IGNORE  # an example of which nothing counts
    chosen = torch.stack([torch.randperm(SIZE**2, generator=g)[:CHOSEN] for _ in range(n)])
    chosen[1, 5:] = -1
    targets = {"mask": mask, "chosen": chosen}
    rows = Segmentation(CLASSES, ignore=IGNORE).num_rows(targets).sum()
    inputs = torch.randn(n, 2, SIZE, SIZE, generator=g, dtype=torch.float64)
    return Batch(inputs, targets, torch.full((n,), 1 / rows.item(), dtype=torch.float64), torch.arange(n))


def box_batch(n, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = {"points": torch.randn(n, 4, generator=g).double(), "scale": torch.rand(n, 1, generator=g).double()}
    targets = {"there": (torch.arange(n) % 3 > 0).long(), "place": torch.randn(n, 2, generator=g).double()}
    return Batch(inputs, targets, torch.full((n,), 1 / n, dtype=torch.float64), torch.arange(n))


def part_of(batch, rows):
    def cut(fields):
        return {name: x[rows] for name, x in fields.items()} if isinstance(fields, dict) else fields[rows]

    return Batch(*(cut(fields) for fields in batch))


def seeded(make, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def pixel_task(error):
    return Segmentation(CLASSES, ignore=IGNORE, error=error)


TERMS = TermLoss(
    Segmentation(CLASSES).kinds,
    shares={"cross_entropy": [0.5, 0.3, 0.2]},
    knots={"cross_entropy": [0.3, 1.0], "jaccard": [0.5]},
)
BOX_TERMS = TermLoss(Boxes.kinds, knots={"where": [0.5, 2.0]})
PAIRS = DynamicLossNetwork(5, 3, init="released", pairs="softmax", activation="silu", seed=2).double()
SOFT_METRIC = SoftMetricLoss(SoftMetricSpec(CLASSES, (0.5, 0.3, 0.2), pieces=3, sums="image"))
OTHER = ("boundary", "focal", "dice")
CASES = {
    "pixels, pairs": (PixelStudent, lambda: pixel_task("cross_entropy"), lambda task: PairLoss(PAIRS, task)),
    "pixels, terms": (PixelStudent, lambda: pixel_task("soft_miou"), lambda task: TERMS),
    "pixels, terms, Dice": (PixelStudent, lambda: pixel_task("soft_dice"), lambda task: TERMS),
    "pixels, other terms": (
        PixelStudent,
        lambda: Segmentation(CLASSES, ignore=IGNORE, error="soft_miou", loss_terms=OTHER),
        lambda task: TermLoss(task.kinds),
    ),
    "pixels, curves inside": (PixelStudent, lambda: pixel_task("soft_miou"), lambda task: SOFT_METRIC),
    "boxes, terms": (BoxStudent, Boxes, lambda task: BOX_TERMS),
}


def round_of(student):
    batch = pixel_batch if student is PixelStudent else box_batch
    return RoundBatches([batch(5, seed=10 + k) for k in range(STEPS)], batch(6, seed=99))


def phi_of(loss):
    generator = torch.Generator().manual_seed(5)
    return loss.phi.double() + 0.05 * torch.randn(loss.phi.shape, generator=generator, dtype=torch.float64)


def through_the_seam(case, engine, batches, group=None):
    make_student, make_task, make_loss = CASES[case]
    group = group or SingleProcess()
    trainee = Trainee(
        FlatModule(make_student), make_task(), StudentSchedule(lambda step: RATE, STEPS, Sgd(MOMENTUM, DECAY)), group
    )
    loss = make_loss(trainee.task)
    objective = LearnedObjective(trainee, loss)
    state = objective.constants_of_round(objective.init(), batches, 0)
    problem = objective.problem(state)
    return hypergradient(
        problem, state.student, phi_of(loss), batches.train, batches.val, rates=[RATE] * STEPS, engine=engine
    )


# -- the rendering


def plain_step_loss(case, module, weights, phi, batch):
    if case == "boxes, terms":
        return plain_box_loss(functional_call(module, weights, (), dict(batch.inputs)), phi, batch)
    logits, labels = plain_pixels(functional_call(module, weights, (batch.inputs,)), batch)
    if case == "pixels, pairs":
        flat, truth = torch.cat(logits), torch.cat(labels)
        return PAIRS.losses_at(phi, flat, truth).mean()
    count = sum(len(own) for own in labels)
    if case == "pixels, other terms":
        return plain_other_terms(logits, labels, plain_borders(batch), phi, count)
    raw = (10 * phi[:4]).exp()
    shares = torch.tensor([0.5, 0.3, 0.2, 1.0], dtype=torch.float64)
    a = raw * shares.sum() / (shares * raw).sum()
    if case == "pixels, curves inside":
        return plain_soft_metric(logits, labels, a, phi, count)
    total = 0
    for own_logits, own_labels in zip(logits, labels, strict=True):
        if not len(own_labels):
            continue
        ce = F.cross_entropy(own_logits, own_labels, reduction="none")
        total = total + (a[own_labels] * plain_curve(ce, phi[4:7], (0.3, 1.0))).sum() / count
        p = own_logits.softmax(1)
        ratios = []
        for k in own_labels.unique():
            t = (own_labels == k).double()
            ratios.append((p[:, k] * t).sum() / (p[:, k] + t - p[:, k] * t).sum())
        jaccard = 1 - torch.stack(ratios).mean()
        total = total + a[3] * plain_curve(jaccard, phi[7:9], (0.5,)) * len(own_labels) / count
    return total


def plain_other_terms(logits, labels, borders, phi, count):
    raw = (10 * phi).exp()
    a, total = raw / raw.mean(), 0
    for own_logits, own_labels, border in zip(logits, labels, borders, strict=True):
        for z, y, is_border in zip(own_logits, own_labels, border, strict=True):
            ce = F.cross_entropy(z, y)
            total = total + (a[0] * is_border * ce + a[1] * (1 - z.softmax(0)[y]) ** 2 * ce) / count
        if len(own_labels):
            p = own_logits.softmax(1)
            dices = [
                2 * p[own_labels == k, k].sum() / (p[:, k].sum() + (own_labels == k).sum()) for k in own_labels.unique()
            ]
            total = total + a[2] * (1 - torch.stack(dices).mean()) * len(own_labels) / count
    return total


def plain_soft_metric(logits, labels, a, phi, count):
    total = 0
    for z, y in zip(logits, labels, strict=True):
        if not len(y):
            continue
        p = z.softmax(1)
        hit, seen = (plain_rise(p, phi[first : first + 3]) for first in (4, 7))
        ratios = [hit[y == k, k].sum() / ((y == k).sum() + seen[y != k, k].sum()) for k in y.unique()]
        ce = (a[y] * F.cross_entropy(z, y, reduction="none")).sum()
        total = total + (ce + a[3] * (1 - torch.stack(ratios).mean()) * len(y)) / count
    return total


def plain_rise(p, numbers):
    heights = torch.cat((torch.zeros(1), (10 * numbers).softmax(0).cumsum(0)))
    piece = (3 * p.detach()).long().clamp(max=2)
    return heights[piece] + (3 * p - piece) * (heights[piece + 1] - heights[piece])


def plain_curve(x, numbers, knots):
    slopes = (10 * numbers).exp() / (10 * numbers).exp().mean()
    total, below = 0, 0.0
    for slope, knot in zip(slopes, (*knots, 1e9), strict=True):
        total = total + slope * (x.clamp(max=knot) - below).clamp(min=0)
        below = knot
    return total


def plain_box_loss(outputs, phi, batch):
    raw = (10 * phi[:3]).exp()
    a, n = raw / raw.mean(), len(batch.indices)
    total = 0
    for i in range(n):
        where, what = outputs["where"][i], outputs["what"][i]
        there, place = batch.targets["there"][i], batch.targets["place"][i]
        total = total + a[2] * F.binary_cross_entropy_with_logits(what, there.double()) / n
        total = total + 0.01 * (where.square().sum() + what.square()) / n
        if there:
            square = (where - place).square().sum()
            total = total + 5 * a[int(place[0] > 0)] * plain_curve(square, phi[3:6], (0.5, 2.0)) / n
    return total


def plain_pixels(outputs, batch):
    logits, labels = [], []
    for i in range(len(outputs)):
        own = [p for p in batch.targets["chosen"][i].tolist() if p >= 0]
        own = [p for p in own if batch.targets["mask"][i].flatten()[p] != IGNORE]
        logits.append(outputs[i].flatten(1)[:, own].T)
        labels.append(batch.targets["mask"][i].flatten()[own])
    return logits, labels


def plain_borders(batch):
    """Of the rows of `plain_pixels`, which touch another class."""
    borders = []
    for mask, chosen in zip(batch.targets["mask"], batch.targets["chosen"], strict=True):
        touching = []
        for row, column in (divmod(p, SIZE) for p in chosen.tolist() if p >= 0):
            around = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            beside = {mask[i, j].item() for i, j in around if 0 <= i < SIZE and 0 <= j < SIZE}
            if mask[row, column] != IGNORE:
                touching.append(bool(beside - {IGNORE, mask[row, column].item()}))
        borders.append(touching)
    return borders


def plain_error(case, module, weights, val):
    if case == "boxes, terms":
        p = functional_call(module, weights, (), dict(val.inputs))["what"].sigmoid()
        return 1 - (p * val.targets["there"]).sum() / p.sum()
    logits = functional_call(module, weights, (val.inputs,)).permute(0, 2, 3, 1).reshape(-1, 3)
    labels = val.targets["mask"].flatten()
    logits, labels = logits[labels != IGNORE], labels[labels != IGNORE]
    if case == "pixels, pairs":
        return F.cross_entropy(logits, labels)
    p, t = logits.softmax(1), F.one_hot(labels, 3)
    both = (p * t).sum(0)
    if case == "pixels, terms, Dice":
        return 1 - (2 * both / (p.sum(0) + t.sum(0))).mean()
    return 1 - (both / (p.sum(0) + t.sum(0) - both)).mean()


def plain_hypergradient(case, batches):
    module = seeded(CASES[case][0])
    phi = phi_of(CASES[case][2](CASES[case][1]())).requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for batch in batches.train:
        loss = plain_step_loss(case, module, weights, phi, batch)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for name, gradient in zip(list(weights), gradients, strict=True):
            velocity[name] = MOMENTUM * velocity[name] + gradient + DECAY * weights[name]
        weights = {name: w - RATE * velocity[name] for name, w in weights.items()}
    error = plain_error(case, module, weights, batches.val)
    return error.detach(), torch.autograd.grad(error, phi)[0]


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    make_student, make_task, make_loss = CASES[request.param]
    monkeypatch.setitem(CASES, request.param, (make_student, make_task, make_loss))
    return request.param


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_equals_autograd_through_all_steps(case, engine, monkeypatch):
    batches = round_of(CASES[case][0])
    error, expected = plain_hypergradient(case, batches)
    monkeypatch.setitem(CASES, case, (seeded(CASES[case][0]), *CASES[case][1:]))
    result = through_the_seam(case, engine, batches)
    assert relative(result.error, error) < 1e-12
    assert expected.norm() > 1e-4 and relative(result.gradient, expected) < 1e-10


@pytest.mark.parametrize("engine", ["store", "recompute"])
def test_two_workers_shares_add_up_to_it(case, engine, run_on_two_workers, monkeypatch):
    """Slices of unequal numbers of rows, one worker's with an example of which nothing counts."""
    batches = round_of(CASES[case][0])
    error, expected = plain_hypergradient(case, batches)
    make, *rest = CASES[case]
    replicas = [seeded(make), seeded(make)]

    def work(group):
        rows = slice(0, 2) if group.rank == 0 else slice(2, None)
        own = RoundBatches([part_of(batch, rows) for batch in batches.train], part_of(batches.val, rows))
        return through_the_seam(f"{case} {group.rank}", engine, own, group)

    for rank in range(2):
        monkeypatch.setitem(CASES, f"{case} {rank}", (replicas[rank], *rest))
    first, second = run_on_two_workers(work)
    assert relative(first.error + second.error, error) < 1e-12
    assert relative(first.gradient + second.gradient, expected) < 1e-10
    assert torch.equal(first.student.theta, second.student.theta)
