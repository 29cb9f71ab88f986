"""COCO's average precision of boxes, from the boxes themselves.

It is no sum over images, for boxes of all images are ranked together: what is gathered from batches and workers are
boxes. Matching and averaging are those of COCO's own evaluation (`pycocotools.cocoeval`), sizes those of boxes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.interfaces import Metrics
from l2t_ray.tasks.boxes import area, intersection
from l2t_ray.tasks.detections import MAX_BOXES, Survivors

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""Of overlap."""

_RECALLS = np.linspace(0, 1, 101)
_AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
_NUM_COLUMNS = 9


def score_rows(
    predicted: Float[Tensor, "n N 4"],
    left: Survivors,
    boxes: Float[Tensor, "n m 4"],
    labels: Int[Tensor, "n m"],
    crowd: Bool[Tensor, "n m"],
    image: Int[Tensor, " n"],
) -> Float[Tensor, "rows 9"]:
    """A row for each box that is left and each truth: image, class, score, x1, y1, x2, y2, whether it is a truth, and
    one of a crowd; in double precision."""
    given = torch.zeros(len(left.cell), _NUM_COLUMNS, dtype=torch.float64, device=boxes.device)
    given[:, 0], given[:, 1], given[:, 2] = image[left.image], left.label, left.logit.double().sigmoid()
    given[:, 3:7] = predicted[left.image, left.cell]
    number, place = (labels >= 0).nonzero(as_tuple=True)
    truths = given.new_zeros(len(number), _NUM_COLUMNS)
    truths[:, 0], truths[:, 1], truths[:, 3:7] = image[number], labels[number, place], boxes[number, place]
    truths[:, 7], truths[:, 8] = 1, crowd[number, place]
    return torch.cat((given, truths))


def coco_metrics(rows: Float[Tensor, "rows 9"]) -> Metrics:
    """`ap`, `ap50`, `ap75`, and `ap_small`, `ap_medium`, `ap_large` where there are such boxes; the first three are nan
    where there is none at all."""
    precisions = [_precision(own) for own in _by_class(rows)]
    table = np.stack(precisions) if precisions else np.full((1, len(_AREAS), len(THRESHOLDS)), np.nan)
    metrics = {
        "ap": float(np.nanmean(table[:, 0])) if precisions else float("nan"),
        "ap50": float(np.nanmean(table[:, 0, 0])) if precisions else float("nan"),
        "ap75": float(np.nanmean(table[:, 0, 5])) if precisions else float("nan"),
    }
    for number, name in enumerate(_AREAS):
        if name and not np.isnan(table[:, number]).all():
            metrics[f"ap{name}"] = float(np.nanmean(table[:, number]))
    return metrics


def mean_curves(
    rows: Float[Tensor, "rows 9"], thresholds: Sequence[float]
) -> tuple[Float[np.ndarray, "101"], list[Float[np.ndarray, "101"]]]:
    """Recalls, and for each of these thresholds of overlap the best precision at that recall or a higher one, a mean
    over the classes that have a truth: its mean is the average precision. None where there is no truth at all."""
    curves = []
    for hits, misses, num_truths in map(_counted, _by_class(rows)):
        if num_truths[0]:
            places = [THRESHOLDS.index(threshold) for threshold in thresholds]
            curves.append([_best_precisions(hits[0, t], misses[0, t], int(num_truths[0])) for t in places])
    return _RECALLS, list(np.mean(curves, axis=0)) if curves else []


class _Image(NamedTuple):
    """What became of the boxes of one class in one image, by range of areas (a) and threshold (t)."""

    score: np.ndarray  # [d]
    matched: np.ndarray  # [a, t, d]
    ignored: np.ndarray  # [a, t, d]
    num_truths: np.ndarray  # [a]


def _by_class(rows: Float[Tensor, "rows 9"]) -> list[Float[Tensor, "own 9"]]:
    """Rows of each class that has a truth. Those of an image stay in their order; which worker had it does not
    count."""
    rows = rows[rows[:, 0].argsort(stable=True)].cpu()
    return [own for label in rows[:, 1].unique() if (own := rows[rows[:, 1] == label])[:, 7].any()]


def _precision(rows: Float[Tensor, "rows 9"]) -> np.ndarray:
    """The average precision of one class by range of areas and threshold; nan where there is no such truth."""
    hits, misses, num_truths = _counted(rows)
    found = np.full(hits.shape[:2], np.nan)
    for a, t in np.ndindex(*found.shape):
        if num_truths[a]:
            found[a, t] = _best_precisions(hits[a, t], misses[a, t], int(num_truths[a])).mean()
    return found


def _counted(rows: Float[Tensor, "rows 9"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one class: boxes up to each one in the order of scores that are right, and that are wrong, both `[a, t, d]`;
    and how many truths there are, `[a]`."""
    _, counts = rows[:, 0].unique_consecutive(return_counts=True)
    images = [_matched(own) for own in rows.split(counts.tolist())]
    score = np.concatenate([own.score for own in images])
    order = np.argsort(-score, kind="stable")
    matched, ignored = (
        np.concatenate([getattr(own, name) for own in images], axis=2)[..., order] for name in ("matched", "ignored")
    )
    num_truths = np.sum([own.num_truths for own in images], axis=0)
    return np.cumsum(matched & ~ignored, axis=2), np.cumsum(~matched & ~ignored, axis=2), num_truths


def _best_precisions(
    hits: Int[np.ndarray, " d"], misses: Int[np.ndarray, " d"], num_truths: int
) -> Float[np.ndarray, "101"]:
    """At 101 recalls the best precision at that recall or a higher one."""
    hits, misses = hits.astype(float), misses.astype(float)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / num_truths, _RECALLS, side="left")
    return np.append(precision, 0.0)[np.minimum(places, len(precision))]


def _matched(rows: Float[Tensor, "rows 9"]) -> _Image:
    """Boxes in the order of their scores each take the free truth that they overlap with most, by COCO's rules."""
    is_truth = rows[:, 7] > 0
    given, truths = rows[~is_truth], rows[is_truth]
    given = given[given[:, 2].argsort(descending=True, stable=True)[:MAX_BOXES]]
    crowd = truths[:, 8] > 0
    overlap = intersection(given[:, None, 3:7], truths[None, :, 3:7])
    sizes = area(given[:, 3:7])[:, None]
    union = torch.where(crowd, sizes, sizes + area(truths[:, 3:7]) - overlap)
    ious = (overlap / union.clamp(min=torch.finfo(union.dtype).tiny)).numpy()
    outside, given_outside = _outside(truths), _outside(given)
    ignored_truths = outside | crowd.numpy()  # [a, g]

    shape = (len(_AREAS), len(THRESHOLDS))
    least = np.minimum(np.array(THRESHOLDS), 1 - 1e-10)[None, :, None]
    free = np.ones((*shape, len(truths)), dtype=bool)
    matched = np.zeros((*shape, len(given)), dtype=bool)
    ignored = np.zeros_like(matched)
    if len(truths):
        areas, thresholds = np.indices(shape)
        for number in range(len(given)):
            can = (free | crowd.numpy()) & (ious[number] >= least)
            # A truth that counts comes before one that is ignored; of equal ones the last.
            rank = np.where(can, ious[number] + 2 * ~ignored_truths[:, None], -1.0)
            best = rank.shape[2] - 1 - rank[..., ::-1].argmax(axis=2)
            hit = np.take_along_axis(rank, best[..., None], axis=2)[..., 0] >= 0
            matched[..., number] = hit
            ignored[..., number] = hit & ignored_truths[areas, best]
            free[areas[hit], thresholds[hit], best[hit]] = False
    ignored |= ~matched & given_outside[:, None]
    return _Image(given[:, 2].numpy(), matched, ignored, (~ignored_truths).sum(axis=1))


def _outside(rows: Float[Tensor, "rows 9"]) -> np.ndarray:
    """`[a, rows]`: which boxes are of no such size."""
    sizes = area(rows[:, 3:7]).numpy()
    return np.stack([(sizes < low) | (sizes > high) for low, high in _AREAS.values()])
