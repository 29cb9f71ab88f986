"""Training parts whose classes are of unequal size, thinned out of balanced ones by published protocols.

`exponential` is Meta-Weight-Net's (Shu et al., NeurIPS 2019) and Cui et al.'s (CVPR 2019): class c of C keeps
n_max * factor^(-c / (C - 1)) images. `step` is Cao et al.'s (NeurIPS 2019): the first half of the classes, rounded
down, keep n_max, the others n_max / factor. `rare` is of one class: of the images that have it, one in `factor` is
kept, whatever else is on them. Which classes are rare is part of the protocol; which images are kept
depends on the seed, and a larger factor keeps some of those that a smaller one keeps.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.splits import Policy, Split
from l2t_ray.interfaces import UserError

ImbalanceKind = Literal["exponential", "step"]
"""Kinds that are of all classes."""
_ROUNDING = 1e-9
"""A number of images that is whole but for rounding is whole."""


def shares(kind: ImbalanceKind, factor: float, num_classes: int) -> Float[np.ndarray, " c"]:
    """What each class keeps, in units of the largest: from 1 down to 1 / factor."""
    classes = np.arange(num_classes)
    if kind == "exponential":
        return factor ** (-classes / max(1, num_classes - 1))
    return np.where(classes < num_classes // 2, 1.0, 1 / factor)


def kept_counts(kind: ImbalanceKind, factor: float, counts: Int[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    """How many images each class keeps of those that it has: n_max is the largest for which every class has enough."""
    own = shares(kind, factor, len(counts))
    largest = np.floor((counts / own).min() + _ROUNDING)
    return np.floor(largest * own + _ROUNDING).astype(np.int64)


def thinned(
    policy: Policy,
    labels: Int[np.ndarray, " n"],
    kind: ImbalanceKind,
    factor: float,
    seed: int,
    class_names: Sequence[str],
) -> Policy:
    """The training part with fewer images of some classes; the validation part as it is.

    Args:
        policy: a split that is the same in every epoch.
        labels: true classes, by which images are left out.

    Raises:
        UserError: if a class would be left without a training image.
    """
    split, num_classes = policy.at(0), len(class_names)
    own = labels[split.train]
    counts = np.bincount(own, minlength=num_classes)
    if not counts.all():
        label = int(counts.argmin())
        raise UserError(
            f"data.imbalance: class {label} ({class_names[label]}) has no training image to begin with; leave "
            "data.imbalance out, or add some."
        )
    kept = kept_counts(kind, factor, counts)
    if not kept.all():
        label = int(kept.argmin())
        raise UserError(
            f"data.imbalance.factor={factor:g} leaves class {label} ({class_names[label]}) without a training image, "
            f"where the largest class has {kept.max()}; lower it, or use more training images (data.num_train)."
        )
    places = [_chosen(own == label, count, seed, label) for label, count in enumerate(kept.tolist())]
    train = split.train[np.sort(np.concatenate(places))]
    return Policy(lambda epoch: Split(train, split.validation), lasts=None)


def with_rare(
    policy: Policy, has_class: Bool[np.ndarray, " n"], factor: float, seed: int, label: int, name: str
) -> Policy:
    """The training part with one in `factor` of the images that have a class; the validation part as it is.

    Args:
        policy: a split that is the same in every epoch.
        has_class: by image.
        label, name: of the class.

    Raises:
        UserError: if no image with the class would be left.
    """
    split = policy.at(0)
    own = has_class[split.train]
    count = int(own.sum())
    kept = int(count / factor + _ROUNDING)
    if not kept:
        raise UserError(
            f"data.imbalance.factor={factor:g} leaves none of the {count} training images that have {name}; lower it, "
            "or name another class as data.imbalance.of."
        )
    places = np.concatenate((np.flatnonzero(~own), _chosen(own, kept, seed, label)))
    train = split.train[np.sort(places)]
    return Policy(lambda epoch: Split(train, split.validation), lasts=None)


def _chosen(is_own: np.ndarray, count: int, seed: int, label: int) -> Int[np.ndarray, " k"]:
    places = np.flatnonzero(is_own)
    return places[numpy_generator(seed, "imbalance", label).permutation(len(places))[:count]]
