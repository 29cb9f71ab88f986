"""COCO's average precision of boxes, from the boxes themselves.

It is no sum over images, for boxes of all images are ranked together: what is gathered from batches and workers are
boxes. Matching and averaging are those of COCO's own evaluation (`pycocotools.cocoeval`), sizes those of boxes.
"""

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
    # Those of an image stay in their order; which worker had it does not count.
    rows = rows[rows[:, 0].argsort(stable=True)].cpu()
    precisions = [_precision(own) for label in rows[:, 1].unique() if (own := rows[rows[:, 1] == label])[:, 7].any()]
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


class _Image(NamedTuple):
    """What became of the boxes of one class in one image, by range of areas (a) and threshold (t)."""

    score: np.ndarray  # [d]
    matched: np.ndarray  # [a, t, d]
    ignored: np.ndarray  # [a, t, d]
    num_truths: np.ndarray  # [a]


def _precision(rows: Float[Tensor, "rows 9"]) -> np.ndarray:
    """The average precision of one class by range of areas and threshold; nan where there is no such truth."""
    _, counts = rows[:, 0].unique_consecutive(return_counts=True)
    images = [_matched(own) for own in rows.split(counts.tolist())]
    score = np.concatenate([own.score for own in images])
    order = np.argsort(-score, kind="stable")
    matched, ignored = (
        np.concatenate([getattr(own, name) for own in images], axis=2)[..., order] for name in ("matched", "ignored")
    )
    num_truths = np.sum([own.num_truths for own in images], axis=0)
    hits, misses = np.cumsum(matched & ~ignored, axis=2), np.cumsum(~matched & ~ignored, axis=2)
    found = np.full(hits.shape[:2], np.nan)
    for a, t in np.ndindex(*found.shape):
        if num_truths[a]:
            found[a, t] = _area_under(hits[a, t].astype(float), misses[a, t].astype(float), int(num_truths[a]))
    return found


def _area_under(hits: np.ndarray, misses: np.ndarray, num_truths: int) -> float:
    """The mean over 101 recalls of the best precision at that recall or a higher one."""
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / num_truths, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())


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
