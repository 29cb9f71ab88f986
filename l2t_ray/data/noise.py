"""Label noise after Meta-Weight-Net (Shu et al., NeurIPS 2019), with the transition matrices of its released code.

Each function returns the noisy labels and the matrix T with T[i, j] = P(noisy = j | true = i). Which classes a class
is flipped to is part of the published protocol and the same in every run; which images are flipped depends on `seed`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer
from torch import Tensor

from l2t_ray.data.counted import numpy_generator
from l2t_ray.interfaces import UserError

LabelsLike = Integer[np.ndarray, " n"] | Integer[Tensor, " n"] | Sequence[int]
Noisy = tuple[Int[np.ndarray, " n"], Float[np.ndarray, "c c"]]

# The published code seeds its class pairs with 1 whatever the run's seed; its tables hold for these pairs only.
_PAIRS_SEED = 1


def flip_to_two(labels: LabelsLike, rate: float, num_classes: int, seed: int) -> Noisy:
    """Flips a label with probability `rate`, to one of two fixed other classes with equal chance ("flip2").

    Args:
        labels: true classes in [0, num_classes).
        rate: share of flipped labels, in [0, 1). At 0.4 each wrong class gets 20 %, so the true one stays ahead.
        num_classes: at least 3.
        seed: of the draws; not of the class pairs.

    Returns:
        Noisy labels and the transition matrix.

    Raises:
        UserError: if `rate` is outside [0, 1), or there are too few classes.
    """
    return _flip(labels, rate, num_classes, seed, num_targets=2)


def flip_to_one(labels: LabelsLike, rate: float, num_classes: int, seed: int) -> Noisy:
    """Flips a label with probability `rate` to one fixed other class ("flip"). Otherwise like `flip_to_two`."""
    return _flip(labels, rate, num_classes, seed, num_targets=1)


def uniform(labels: LabelsLike, rate: float, num_classes: int, seed: int) -> Noisy:
    """Replaces a label with probability `rate` by any class, the true one among them ("unif").

    So a share of only rate * (1 - 1 / num_classes) of the labels ends up wrong. Otherwise like `flip_to_two`.
    """
    _check_rate(rate)
    matrix = np.full((num_classes, num_classes), rate / num_classes)
    matrix[np.diag_indices(num_classes)] += 1 - rate
    return apply_transition(labels, matrix, seed), matrix


def flip_to_similar(labels: LabelsLike, rate: float, similar: Int[np.ndarray, "c k"], seed: int) -> Noisy:
    """Flips a label with probability `rate` to one of the classes `similar[label]`, with equal chance.

    Raises:
        UserError: if `rate` is outside [0, 1).
    """
    _check_rate(rate)
    matrix = np.eye(len(similar)) * (1 - rate)
    np.put_along_axis(matrix, similar, rate / similar.shape[1], axis=1)
    return apply_transition(labels, matrix, seed), matrix


def realised(
    labels: Int[np.ndarray, " n"], observed: Int[np.ndarray, " n"], num_classes: int
) -> Float[np.ndarray, "c c"]:
    """The transition matrix that labels and observed labels show: row the class, column the label, as shares.

    A class without images has the identity's row.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, observed), 1)
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.eye(num_classes))


def apply_transition(labels: LabelsLike, matrix: Float[np.ndarray, "c c"], seed: int) -> Int[np.ndarray, " n"]:
    """Draws each label anew from the row of its true class.

    Args:
        labels: true classes in [0, c).
        matrix: T[i, j] = P(noisy = j | true = i), with rows that sum to 1.
        seed: of the draws. The draw of an image depends on its place in `labels`, not on the other labels.

    Returns:
        The noisy labels.

    Raises:
        UserError: if the matrix is not square with non-negative rows that sum to 1, or a label has no row in it.
    """
    true = np.asarray(labels, dtype=np.int64)
    is_square = matrix.ndim == 2 and len(set(matrix.shape)) == 1
    if not is_square or matrix.min() < 0 or not np.allclose(matrix.sum(axis=1), 1):
        raise UserError(
            "the transition matrix (data.noise.file) must be square with non-negative entries and rows that sum to 1, "
            f"got shape {matrix.shape}."
        )
    num_classes = len(matrix)
    if len(true) and not (true.min() >= 0 and true.max() < num_classes):
        raise UserError(
            f"noise: labels run from {true.min()} to {true.max()}, but the transition matrix has {num_classes} classes."
        )
    bounds = matrix.cumsum(axis=1)
    bounds /= bounds[:, -1:]  # exactly 1 at the end, so that a class of probability 0 there is never drawn
    draws = numpy_generator(seed, "noise").random(len(true))
    noisy = np.empty_like(true)
    for label, row in enumerate(bounds):
        here = true == label
        noisy[here] = np.searchsorted(row, draws[here], side="right")
    return noisy


def _flip(labels: LabelsLike, rate: float, num_classes: int, seed: int, *, num_targets: int) -> Noisy:
    _check_rate(rate)
    if num_classes <= num_targets:
        raise UserError(
            f"noise: flipping to {num_targets} other classes needs at least {num_targets + 1} classes, "
            f"got {num_classes}."
        )
    # The legacy generator, on purpose: its stream is frozen, and it is the one that the published pairs come from.
    pairs = np.random.RandomState(_PAIRS_SEED)
    matrix = np.eye(num_classes) * (1 - rate)
    classes = np.arange(num_classes)
    for label in classes:
        others = classes[classes != label]
        # One draw goes another way through the generator than one draw "without replacement": the code has both.
        targets = pairs.choice(others) if num_targets == 1 else pairs.choice(others, num_targets, replace=False)
        matrix[label, targets] = rate / num_targets
    return apply_transition(labels, matrix, seed), matrix


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise UserError(f"data.noise.rate must be in [0, 1), got {rate}.")
