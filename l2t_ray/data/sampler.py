"""Which images make up the minibatches of a round: a pure function of the seed and the round's number."""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.splits import Policy
from l2t_ray.interfaces import UserError


class RoundPlan(NamedTuple):
    """Rows of the training set: one array for each of the round's training minibatches, and the validation one."""

    epoch: int
    train: tuple[Int[np.ndarray, " b"], ...]
    val: Int[np.ndarray, " v"]


class RoundSampler:
    """Deals the split's two parts out to the rounds.

    An epoch is one pass over the validation part in `val_batch`es, `num_validation // val_batch` rounds; what is left
    over of the part waits for the next epoch's order. Training batches run through the training part in passes, each
    in an order of its own. Where the split changes they start afresh with it, as in the released code; where it is
    fixed they run on across epochs, so that every image has its turn however short an epoch is.

    `at_pass_end` says what happens when a pass over the training part ends:

    - `wrap`: the next pass follows without a seam. A batch on the seam has images of both passes (possibly the same
      image twice); every batch has exactly `train_batch` images and every round `num_steps` batches.
    - `lose_step`: as in the released code, where a step that finds the loader exhausted makes a new one and is lost.
      A pass ends with a smaller batch where `train_batch` does not divide (PyTorch's loader without `drop_last`), and
      the round in which it ends, or that starts right at its end, has a batch fewer.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int,
        num_steps: int,
        train_batch: int,
        val_batch: int,
        at_pass_end: Literal["wrap", "lose_step"] = "wrap",
    ):
        """
        Raises:
            UserError: if a count is below 1, a batch is larger than its part, or `lose_step` could leave a round empty.
        """
        split = policy.at(0)
        counts = {"num_steps": num_steps, "batch_size": train_batch, "val_batch_size": val_batch}
        for key, value in counts.items():
            if value < 1:
                raise UserError(f"training.{key} must be at least 1, got {value}.")
        for key, part in (("batch_size", split.train), ("val_batch_size", split.validation)):
            if counts[key] > len(part):
                raise UserError(
                    f"training.{key}={counts[key]} is more than the {len(part)} images of that part of the "
                    "training set; lower it or enlarge the part."
                )
        if at_pass_end == "lose_step" and num_steps == 1:
            raise UserError(
                "data.at_pass_end=lose_step could cost a round its only step: set training.num_steps to at least 2, "
                "or data.at_pass_end=wrap."
            )
        self.policy = policy
        self.seed = seed
        self.num_steps = num_steps
        self.train_batch = train_batch
        self.val_batch = val_batch
        self.at_pass_end = at_pass_end
        self.num_train = len(split.train)
        self.num_validation = len(split.validation)
        self.rounds_per_epoch = self.num_validation // val_batch
        # The last few orders only: neighbouring rounds share them, and a long run passes through very many.
        self._train_order = lru_cache(maxsize=4)(self._draw_train_order)
        self._val_order = lru_cache(maxsize=2)(self._draw_val_order)
        self.split = lru_cache(maxsize=2)(policy.at)

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest training or validation batch that any round can have."""
        rest = self.num_train % self.train_batch if self.at_pass_end == "lose_step" else 0
        return min(self.train_batch, self.val_batch, rest or self.train_batch)

    def epoch(self, index: int) -> int:
        return index // self.rounds_per_epoch

    def plan(self, index: int) -> RoundPlan:
        """The batches of round `index` (from 0), in time proportional to their size once the epoch's orders exist."""
        epoch, within = divmod(index, self.rounds_per_epoch)
        # Each split has a stream of passes; that of a fixed one is endless.
        lasts = self.policy.lasts
        stream, first = (0, index) if lasts is None else divmod(index, lasts * self.rounds_per_epoch)
        steps = range(first * self.num_steps, (first + 1) * self.num_steps)
        batch = self._wrapped_batch if self.at_pass_end == "wrap" else self._batch_unless_lost
        train = tuple(rows for step in steps if len(rows := batch(stream, step)))
        val = self._val_order(epoch)[within * self.val_batch : (within + 1) * self.val_batch]
        return RoundPlan(epoch, train, val)

    def _wrapped_batch(self, stream: int, step: int) -> Int[np.ndarray, " b"]:
        pieces, start, missing = [], step * self.train_batch, self.train_batch
        while missing:  # twice at most, for a batch is no larger than a pass
            number, offset = divmod(start, self.num_train)
            pieces.append(self._train_order(stream, number)[offset : offset + missing])
            start += len(pieces[-1])
            missing -= len(pieces[-1])
        return np.concatenate(pieces)

    def _batch_unless_lost(self, stream: int, step: int) -> Int[np.ndarray, " b"]:
        batches_per_pass = -(-self.num_train // self.train_batch)
        number, slot = divmod(step, batches_per_pass + 1)  # the last slot of a pass is the lost step: an empty slice
        return self._train_order(stream, number)[slot * self.train_batch : (slot + 1) * self.train_batch]

    def _draw_train_order(self, stream: int, number: int) -> Int[np.ndarray, " t"]:
        split = self.split(stream * (self.policy.lasts or 1))
        return numpy_generator(self.seed, "train-order", stream, number).permutation(split.train)

    def _draw_val_order(self, epoch: int) -> Int[np.ndarray, " v"]:
        return numpy_generator(self.seed, "validation-order", epoch).permutation(self.split(epoch).validation)
