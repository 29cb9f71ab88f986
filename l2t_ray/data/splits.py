"""Which training images the student is trained on, and which it is validated on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from l2t_ray.data.counted import numpy_generator
from l2t_ray.interfaces import UserError


class Split(NamedTuple):
    """Row numbers of the training set, both in ascending order; disjoint, unless a part is trained on on purpose."""

    train: Int[np.ndarray, " t"]
    validation: Int[np.ndarray, " v"]


class Policy(NamedTuple):
    """The split of every epoch. `lasts` says for how many epochs one holds, counted from the first; None: for ever."""

    at: Callable[[int], Split]
    lasts: int | None

    def in_validation(self, num_rows: int) -> Bool[np.ndarray, " n"]:
        """Whether each row is in the validation part, of the first epoch."""
        is_validation = np.zeros(num_rows, dtype=bool)
        is_validation[self.at(0).validation] = True
        return is_validation


def fixed_split(
    labels: Int[np.ndarray, " n"],
    num_validation: int,
    seed: int,
    *,
    num_train: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Split:
    """A class-balanced validation part, and the rest (or a class-balanced part of it) for training.

    Args:
        labels: true classes, by which both parts are balanced as evenly as the counts allow.
        num_validation: validation images; at least one a class.
        seed: of the choice. Both parts come from one choice, so they cannot overlap.
        num_train: training images; None for all the rest.
        class_names: for messages, and to notice classes that no label has.

    Raises:
        UserError: if a part would be empty, larger than the set allows, or lack a class.
    """
    _check_counts(labels, num_validation, num_train, class_names)
    validation = np.sort(choose_balanced(labels, num_validation, seed=seed, purpose="validation"))
    rest = np.setdiff1d(np.arange(len(labels)), validation)
    if num_train is not None:
        rest = np.sort(rest[choose_balanced(labels[rest], num_train, seed=seed, purpose="train-subset")])
    return Split(rest, validation)


def redivided_split(n: int, num_validation: int, seed: int, epoch: int) -> Split:
    """A new random division of rows 0..n-1 for each epoch, as the released L2T-DLN code draws it (not balanced).

    Raises:
        UserError: if either part would be empty.
    """
    if not 0 < num_validation < n:
        raise UserError(f"data.num_validation must be between 1 and {n - 1} (of {n} images), got {num_validation}.")
    order = numpy_generator(seed, "redivide", epoch).permutation(n)
    return Split(np.sort(order[num_validation:]), np.sort(order[:num_validation]))


def fixed(
    labels: Int[np.ndarray, " n"],
    num_validation: int,
    seed: int,
    *,
    num_train: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Policy:
    """The same `fixed_split` in every epoch."""
    split = fixed_split(labels, num_validation, seed, num_train=num_train, class_names=class_names)
    return Policy(lambda epoch: split, lasts=None)


def redivided(
    labels: Int[np.ndarray, " n"],
    num_validation: int,
    seed: int,
    *,
    num_train: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Policy:
    """A `redivided_split` each epoch.

    With `num_train`, one class-balanced pool of `num_train + num_validation` images is chosen for the whole run and
    redivided: a pool that changed would show the student more images than the experiment says.
    """
    _check_counts(labels, num_validation, num_train, class_names)
    pool = np.arange(len(labels))
    if num_train is not None:
        pool = np.sort(choose_balanced(labels, num_train + num_validation, seed=seed, purpose="pool"))

    def at(epoch: int) -> Split:
        train, validation = redivided_split(len(pool), num_validation, seed, epoch)
        return Split(pool[train], pool[validation])

    return Policy(at, lasts=1)


def given(
    labels: Int[np.ndarray, " n"],
    validation: Int[np.ndarray, " v"],
    seed: int,
    *,
    num_train: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Policy:
    """The validation part that the user set apart, in every epoch, and the rest (or `num_train` of it) for training.

    Raises:
        UserError: if the validation part lacks a class, or there are fewer than `num_train` other images.
    """
    num_classes = len(class_names) if class_names is not None else int(labels.max()) + 1
    absent = np.setdiff1d(np.arange(num_classes), labels[validation])
    if len(absent):
        raise UserError(
            f"data: no validation image has the class {_name(int(absent[0]), class_names)}; add at least one of each."
        )
    rest = np.setdiff1d(np.arange(len(labels)), validation)
    if num_train is not None:
        if num_train > len(rest):
            raise UserError(f"data.num_train={num_train} is more than the {len(rest)} training images; lower it.")
        rest = np.sort(rest[choose_balanced(labels[rest], num_train, seed=seed, purpose="train-subset")])
    split = Split(rest, np.sort(validation))
    return Policy(lambda epoch: split, lasts=None)


def mixed(policy: Policy) -> Policy:
    """The validation part is trained on as well: both parts are dealt out as one."""

    def at(epoch: int) -> Split:
        split = policy.at(epoch)
        return Split(np.sort(np.concatenate(split)), split.validation)

    return Policy(at, policy.lasts)


def in_folds(policy: Policy, labels: Int[np.ndarray, " n"], seed: int, num_folds: int, lasts: int = 1) -> Policy:
    """Cross-validation: one fold of the validation part is validated on, the others are trained on as well; which one
    changes from epoch to epoch.

    So no student is validated on an image that it is being trained on, and each image is used for both. Where folds
    are not of one size, the last images of larger ones are left out while their fold is validated on.

    Args:
        policy: a split that is the same in every epoch.
        labels: true classes, by which the folds are balanced.
        seed: of the division.
        num_folds: 2 or more.
        lasts: epochs for which a fold is validated on. The order of the training images begins anew with each fold, so
            a time that is much shorter than a pass through them shows some images twice before others once.
    """
    split = policy.at(0)
    order = numpy_generator(seed, "folds").permutation(len(split.validation))
    by_class = order[np.argsort(labels[split.validation][order], kind="stable")]
    fold = np.empty(len(order), dtype=np.int64)
    fold[by_class] = np.arange(len(order)) % num_folds

    def at(epoch: int) -> Split:
        is_validated = fold == (epoch // lasts) % num_folds
        validation = split.validation[is_validated][
            : len(fold) // num_folds
        ]  # as many in each fold: epochs are as long
        return Split(np.sort(np.concatenate((split.train, split.validation[~is_validated]))), validation)

    return Policy(at, lasts)


def validation_alone(policy: Policy) -> Policy:
    """The validation part is all that is trained on."""

    def at(epoch: int) -> Split:
        validation = policy.at(epoch).validation
        return Split(validation, validation)

    return Policy(at, policy.lasts)


def choose_balanced(labels: Int[np.ndarray, " n"], count: int, *, seed: int, purpose: str) -> Int[np.ndarray, " m"]:
    """`count` rows at random, as many of each class as of any other, as far as the classes reach.

    Raises:
        UserError: if there are fewer than `count` rows.
    """
    if count > len(labels):
        raise UserError(f"data: {count} images are asked for, but there are only {len(labels)}.")
    generator = numpy_generator(seed, purpose)
    order = generator.permutation(len(labels))
    # Rank of each row within its class, in the random order; then all first ones of a class, all second ones, ...
    by_class = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[by_class]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    ranks = np.arange(len(ordered)) - np.repeat(starts, sizes)
    # Classes in a random order within a rank: where `count` does not divide, no class is always the favoured one.
    turn = np.repeat(generator.permutation(len(starts)), sizes)
    return by_class[np.lexsort((turn, ranks))[:count]]


def _check_counts(
    labels: Int[np.ndarray, " n"], num_validation: int, num_train: int | None, class_names: Sequence[str] | None
) -> None:
    n = len(labels)
    num_classes = len(class_names) if class_names is not None else int(labels.max()) + 1
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if num_validation < 1:
        raise UserError(f"data.num_validation must be at least 1, got {num_validation}.")
    if num_train is not None and num_train < 1:
        raise UserError(f"data.num_train must be at least 1, got {num_train}; leave it out to use all images.")
    if num_validation + (num_train or 1) > n:
        raise UserError(
            f"data.num_validation={num_validation} and data.num_train={num_train or 'the rest'} need more than the "
            f"{n} training images; lower one of them."
        )
    if len(absent):
        raise UserError(f"data: no training image has the class {_name(int(absent[0]), class_names)}; leave it out.")
    if num_validation < num_classes:
        raise UserError(
            f"data.num_validation={num_validation} leaves a class without a validation image, for instance "
            f"{_name(num_classes - 1, class_names)}; use at least {num_classes}, one a class."
        )
    if num_validation == n:
        raise UserError(f"data.num_validation={num_validation} leaves no image to train on; lower it.")


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return f"{label} ({class_names[label]})" if class_names is not None else str(label)
