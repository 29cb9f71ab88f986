"""Data reweighting: how much each training sample counts, by its likeness to its class among validation data.

Supplement, Sec. 5: the weight of a sample is the similarity of its embedding to the centre of its class in the
validation data, divided by the sum over the minibatch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.bilevel.unroll import Reweigh
from l2t_ray.core.student import Trainee
from l2t_ray.interfaces import Batch, Data, Group, MethodState
from l2t_ray.parallel.group import SingleProcess

SimilarityMetric = Literal["cosine", "dot", "minkowski", "snr"]
MadePositive = Literal["clamp", "softmax", "shift", "softplus", "released"]

SMALLEST = 1e-6  # a clamped similarity: positive, so that an all-negative batch becomes uniform


def similarity(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], metric: SimilarityMetric) -> Float[Tensor, " n"]:
    """Row by row: cosine (eq. 31), dot product (32), Minkowski distance with p = 2 (33) or SNR in decibel (34).

    The Minkowski distance is returned as printed: a distance, smaller for closer vectors. In (34), `a` is the signal
    and `a - b` the noise; their powers are variances over the d coordinates.

    Raises:
        ValueError: if the metric is unknown.
    """
    if metric == "cosine":
        return F.cosine_similarity(a, b, dim=1)
    if metric == "dot":
        return (a * b).sum(dim=1)
    if metric == "minkowski":
        return torch.linalg.vector_norm(a - b, dim=1)
    if metric == "snr":
        return 10 * torch.log10(a.var(dim=1) / (a - b).var(dim=1))
    raise ValueError(f"metric must be 'cosine', 'dot', 'minkowski' or 'snr', got {metric!r}.")


def importance_weights(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    centers: Float[Tensor, "c d"],
    metric: SimilarityMetric,
    *,
    positive: MadePositive = "clamp",
    group: Group | None = None,
) -> Float[Tensor, " n"]:
    """Weights of a minibatch: non-negative, and summing to 1 over the slices of all workers in `group`.

    Similarities can be negative, and dividing mixed signs by their sum flips or explodes weights; the paper is silent
    on it. So they are first made positive:

    - `clamp`: max(s, 1e-6), nearest to the text;
    - `softmax`: exp(s), for SNR exp(s ln(10) / 10), which is the plain ratio of powers;
    - `shift`: s minus the batch's smallest; `softplus`: log(1 + exp(s));
    - `released`: the released code's unused routine: SNR *distance* on unit vectors, 1 / ratio, so that farther
      samples count more; for the other metrics the value as it is.

    A Minkowski distance d becomes the similarity 1 / (1 + d) first, except under `released`. Infinite similarities
    (a sample that equals its centre) count as the largest finite one. A batch whose similarities are all equal, or
    once made positive sum to nothing, gets uniform weights; under `clamp` so does one where all are negative.
    """
    group = group or SingleProcess()
    own_centers = centers[labels]
    if positive == "released":
        a, b = F.normalize(embeddings, dim=1), F.normalize(own_centers, dim=1)
        s = (a - b).var(dim=1) / a.var(dim=1) if metric == "snr" else similarity(a, b, metric)
        raw = s.clamp(min=0)
    else:
        s = similarity(embeddings, own_centers, metric)
        if metric == "minkowski":
            s = 1 / (1 + s)
        raw = _made_positive(_finite(s, group), metric, positive, group)
    raw = torch.where(raw.isfinite(), raw, torch.zeros_like(raw))
    total_and_count = group.sum(torch.stack((raw.sum(), raw.new_tensor(float(raw.shape[0])))))
    total, count = total_and_count[0], total_and_count[1]
    has_weight = total > SMALLEST * SMALLEST
    safe_total = torch.where(has_weight, total, torch.ones_like(total))
    return torch.where(has_weight, raw / safe_total, torch.ones_like(raw) / count).detach()


def _finite(s: Tensor, group: Group) -> Tensor:
    """Infinite or undefined similarities replaced by the largest finite one of the batch (0 where there is none).

    Minus infinity (the SNR of an embedding without any variance, as a dead layer gives) becomes the smallest.
    """
    finite, lowest = s.isfinite(), torch.full_like(s, torch.finfo(s.dtype).min)
    largest = _global_max(torch.where(finite, s, lowest), group)
    smallest = -_global_max(torch.where(finite, -s, lowest), group)
    has_finite = largest >= smallest
    replacement = torch.where(s == -torch.inf, smallest, largest)
    return torch.where(finite, s, torch.where(has_finite, replacement, torch.zeros_like(s)))


def _made_positive(s: Tensor, metric: SimilarityMetric, positive: MadePositive, group: Group) -> Tensor:
    if positive == "clamp":
        return s.clamp(min=SMALLEST)
    if positive == "softmax":
        scaled = s * (torch.log(s.new_tensor(10.0)) / 10) if metric == "snr" else s
        return (scaled - _global_max(scaled, group)).exp()
    if positive == "shift":
        return s + _global_max(-s, group)
    if positive == "softplus":
        return F.softplus(s)
    raise ValueError(f"positive must be 'clamp', 'softmax', 'shift', 'softplus' or 'released', got {positive!r}.")


def _global_max(values: Tensor, group: Group) -> Tensor:
    """The maximum over all workers, by sums alone: each writes its own into a slot of a vector of zeros."""
    slots = values.new_zeros(group.size)
    slots[group.rank] = values.max()
    return group.sum(slots).max()


def class_centers(
    batches: Iterable[tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]],
    num_classes: int,
    *,
    previous: Float[Tensor, "c d"] | None = None,
    group: Group | None = None,
) -> Float[Tensor, "c d"]:
    """Mean embedding of each class over (embeddings, labels) batches and workers.

    A class that does not occur keeps its `previous` centre.

    Raises:
        ValueError: if a class occurs neither here nor in `previous`.
    """
    group = group or SingleProcess()
    sums = counts = None
    for embeddings, labels in batches:
        if sums is None or counts is None:
            sums = embeddings.new_zeros(num_classes, embeddings.shape[1])
            counts = embeddings.new_zeros(num_classes)
        sums.index_add_(0, labels, embeddings)
        counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
    if sums is None or counts is None:
        raise ValueError("class centres need at least one batch, got none.")
    totals = group.sum(torch.cat((sums, counts[:, None]), dim=1))
    sums, counts = totals[:, :-1], totals[:, -1:]
    if previous is None and bool((counts == 0).any()):
        missing = (counts[:, 0] == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"no sample of class {missing} to take a centre from, and no earlier centre to keep.")
    means = sums / counts.clamp(min=1)
    return means if previous is None else torch.where(counts > 0, means, previous)


@dataclass(frozen=True)
class Reweighting:
    """How samples are weighed.

    Attributes:
        metric: similarity of a sample's embedding to the centre of its class.
        positive: what is done with negative similarities (`importance_weights`).
        refresh_every: centres are taken anew in each round whose number it divides, and at the start of each epoch.
    """

    metric: SimilarityMetric
    positive: MadePositive = "clamp"
    refresh_every: int = 25


class ClassCenters:
    """Keeps the class centres fresh in a method's state (`extra["centers"]`), and weighs minibatches by them."""

    def __init__(self, settings: Reweighting, trainee: Trainee, data: Data):
        self._settings, self._trainee, self._data = settings, trainee, data

    def refreshed(self, state: MethodState, index: int) -> MethodState:
        """Centres anew at the start of an epoch, every `refresh_every` rounds, and where there are none, as after a
        warm-up."""
        epoch = self._data.epoch(index)
        is_due = index == 0 or self._data.epoch(index - 1) != epoch or index % self._settings.refresh_every == 0
        if not is_due and "centers" in state.extra:
            return state
        student = state.student
        embeddings = (
            (self._embed(student.theta, student.buffers, batch), batch.targets)
            for batch in self._data.validation(epoch)
        )
        centers = class_centers(
            embeddings, self._data.num_classes, previous=state.extra.get("centers"), group=self._trainee.group
        )
        return state._replace(extra={**state.extra, "centers": centers})

    def reweigh(self, state: MethodState) -> Reweigh:
        """Gives a minibatch the weights that follow from the state's centres."""
        metric, positive, centers = self._settings.metric, self._settings.positive, state.extra["centers"]

        def reweigh(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Batch:
            embeddings = self._embed(theta, buffers, batch)
            weights = importance_weights(
                embeddings, batch.targets, centers, metric, positive=positive, group=self._trainee.group
            )
            return batch._replace(weights=weights)

        return reweigh

    @torch.no_grad()
    def _embed(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, "n d"]:
        """Penultimate features in evaluation mode: the same function for samples and for centres."""
        return self._trainee.embedded(theta, buffers, batch, training=False)[1]
