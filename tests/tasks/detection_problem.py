"""A detector of two strides on images of 32 pixels, its loss written cell by cell, and autograd through all steps."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import Batch, RoundBatches
from l2t_ray.tasks.detection import Detection

CLASSES, STRIDES, SIZE, STEPS = ("cat", "dog", "hen"), (8, 16), 32, 3
ANCHORS = (((5.0, 7.0), (10.0, 8.0)), ((14.0, 18.0), (24.0, 20.0)))
RATE, MOMENTUM, DECAY, IGNORE = 0.02, 0.9, 1e-2, 0.3
PAIRS = DynamicLossNetwork(5, 3, init="released", pairs="softmax", activation="silu", seed=2).double()
BEND = 0.1


def task_of(**settings):
    return Detection(CLASSES, ANCHORS, STRIDES, ignore=IGNORE, **settings)


TERMS = TermLoss(task_of().kinds, knots={"l_conf_background": [BEND]})


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 8, 8)
        self.heads = nn.ModuleList(nn.Conv2d(6, 2 * (5 + len(CLASSES)), 1) for _ in STRIDES)

    def forward(self, x):
        fine = self.body(x).tanh()
        maps = (fine, F.avg_pool2d(fine, 2))
        raw = [head(m).unflatten(1, (2, -1)) for head, m in zip(self.heads, maps, strict=True)]
        return tuple(r.permute(0, 1, 3, 4, 2) for r in raw)


def batch_of(n, seed):
    g = torch.Generator().manual_seed(seed)
    centre = SIZE * torch.rand(n, 4, 2, generator=g).double()
    size = 3 + 20 * torch.rand(n, 4, 2, generator=g).double()
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=2).clamp(0, SIZE)
    labels = torch.randint(3, (n, 4), generator=g)
    labels[torch.rand(n, 4, generator=g) < 0.2] = -1
    labels[0] = -1  # an image with nothing in it
    crowd = torch.zeros(n, 4, dtype=torch.bool)
    crowd[1, 0] = True
    targets = {"boxes": boxes, "labels": labels, "crowd": crowd, "image": torch.arange(n)}
    inputs = torch.randn(n, 3, SIZE, SIZE, generator=g).double()
    return Batch(inputs, targets, torch.full((n,), 1 / n, dtype=torch.float64), torch.arange(n))


def part_of(batch, rows):
    targets = {name: x[rows] for name, x in batch.targets.items()}
    return Batch(batch.inputs[rows], targets, batch.weights[rows], batch.indices[rows])


def round_of():
    return RoundBatches([batch_of(4, seed=10 + k) for k in range(STEPS)], batch_of(5, seed=99))


def student(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Student().double()


def phi_of(loss):
    generator = torch.Generator().manual_seed(5)
    return loss.phi.double() + 0.05 * torch.randn(loss.phi.shape, generator=generator, dtype=torch.float64)


# -- the rendering


def bce(z, y):
    return -(y * z.sigmoid().log() + (1 - y) * (1 - z.sigmoid()).log())


def plain_overlap(a, b, *, of_first=False):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both, first = max(w, 0) * max(h, 0), (a[2] - a[0]) * (a[3] - a[1])
    return both / (first if of_first else first + (b[2] - b[0]) * (b[3] - b[1]) - both)


def plain_terms(outputs, batch, form):
    """By name, `(value, scale, class or None)` of each cell that counts; and the class logits with their labels."""
    values = {"l_loc": [], "l_cls": [], "l_conf_object": [], "l_conf_background": []}
    decisions = []
    for n in range(len(batch.inputs)):
        truths = {}
        boxes, labels, crowds = (batch.targets[name][n].tolist() for name in ("boxes", "labels", "crowd"))
        there = [(box, k, c) for box, k, c in zip(boxes, labels, crowds, strict=True) if k >= 0]
        for box, label, is_crowd in there:
            if is_crowd:
                continue
            w, h = box[2] - box[0], box[3] - box[1]
            choices = [(s, a) for s in range(2) for a in range(2)]
            s, a = max(choices, key=lambda sa: plain_overlap([0, 0, w, h], [0, 0, *ANCHORS[sa[0]][sa[1]]]))
            last = SIZE // STRIDES[s] - 1
            column = min(int((box[0] + box[2]) / 2 / STRIDES[s]), last)
            row = min(int((box[1] + box[3]) / 2 / STRIDES[s]), last)
            truths[s, a, row, column] = (box, label)
        for s, stride in enumerate(STRIDES):
            for a, (aw, ah) in enumerate(ANCHORS[s]):
                for row in range(SIZE // stride):
                    for column in range(SIZE // stride):
                        t = outputs[s][n, a, row, column]
                        if (s, a, row, column) in truths:
                            box, label = truths[s, a, row, column]
                            w, h = box[2] - box[0], box[3] - box[1]
                            x, y = (box[0] + box[2]) / 2 / stride - column, (box[1] + box[3]) / 2 / stride - row
                            sizes = (t[2] - math.log(w / aw)) ** 2 + (t[3] - math.log(h / ah)) ** 2
                            if form == "paper":
                                loc = (t[0].sigmoid() - x) ** 2 + (t[1].sigmoid() - y) ** 2 + sizes
                                conf = (1 - t[4].sigmoid()) ** 2
                            else:
                                loc = bce(t[0], x) + bce(t[1], y) + sizes / 2
                                conf = bce(t[4], 1)
                            values["l_loc"].append(((2 - w * h / SIZE**2) * loc, s, label))
                            cls = sum(bce(t[5 + k], float(k == label)) for k in range(3))
                            values["l_cls"].append((cls, s, label))
                            values["l_conf_object"].append((conf, s, label))
                            decisions.append((t[5:], label))
                            continue
                        x, y = stride * (t[0].sigmoid().item() + column), stride * (t[1].sigmoid().item() + row)
                        w, h = aw * t[2].exp().item(), ah * t[3].exp().item()
                        own = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                        if any(plain_overlap(own, box, of_first=c) > IGNORE for box, _, c in there):
                            continue
                        empty = t[4].sigmoid() ** 2 if form == "paper" else bce(t[4], 0)
                        values["l_conf_background"].append((empty, s, None))
    return values, decisions


COUNTS = {"darknet": (5, 1, 1, 0.5), "paper": (1, 1, 1, 1)}


def plain_loss(module, weights, phi, batch, form, loss):
    """Under the combination of terms, the pair network, or (loss None) as the form is."""
    values, decisions = plain_terms(functional_call(module, weights, (batch.inputs,)), batch, form)
    n, total = len(batch.inputs), 0
    counts = dict(zip(values, COUNTS[form], strict=True))
    if loss is TERMS:
        raw = (10 * phi[:8]).exp()
        a = (raw / raw.mean()).reshape(4, 2)
        slopes = (10 * phi[8:]).exp() / (10 * phi[8:]).exp().mean()
        for term, (name, own) in enumerate(values.items()):
            for value, s, _ in own:
                if name == "l_conf_background":
                    value = slopes[0] * value.clamp(max=BEND) + slopes[1] * (value - BEND).clamp(min=0)
                total = total + counts[name] * a[term, s] * value / n
        return total
    for name, own in values.items():
        if name != "l_cls" or loss is None:
            total = total + counts[name] * sum(value for value, *_ in own) / n
    if loss is PAIRS:
        flat, truth = torch.stack([z for z, _ in decisions]), torch.tensor([k for _, k in decisions])
        total = total + PAIRS.losses_at(phi, flat, truth).sum() / n
    return total


def plain_hypergradient(form, loss, batches, error_of, phi):
    module, phi = student(), phi.requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for batch in batches.train:
        total = plain_loss(module, weights, phi, batch, form, loss)
        gradients = torch.autograd.grad(total, list(weights.values()), create_graph=True)
        for name, gradient in zip(list(weights), gradients, strict=True):
            velocity[name] = MOMENTUM * velocity[name] + gradient + DECAY * weights[name]
        weights = {name: w - RATE * velocity[name] for name, w in weights.items()}
    error = error_of(module, weights, batches.val)
    return error.detach(), torch.autograd.grad(error, phi)[0]
