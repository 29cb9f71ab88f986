"""One worker's share of every round, whatever the examples are."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.examples import Draws, Examples, pieces
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.interfaces import Batch, RoundBatches, UserError


class RoundLoader:
    """Serves worker `rank` of `world_size` (the `Data` protocol).

    A worker takes a contiguous slice of each global batch, as `np.array_split` does. What is drawn for the examples is
    drawn for the global batch and then split, so that the number of workers changes no value. Batch `indices` are
    row numbers of the training set (of the test set in `test()`).

    Args:
        train: what the student is taught.
        validation: what it is validated on; the same examples, row by row, possibly with other targets.
        test: what it is tested on.
        sampler: which rows make up which round.
        seed: of all that is drawn for the examples.
        num_classes: of the targets.
        augment_validation: draw for the validation minibatches of the rounds too.
        test_batch: examples in a batch of `validation()` and `test()`, for which nothing is drawn.

    Raises:
        UserError: if some worker would find a batch empty.
        ValueError: if `train` and `validation` cannot be the same examples.
    """

    def __init__(
        self,
        train: Examples,
        validation: Examples,
        test: Examples,
        sampler: RoundSampler,
        *,
        seed: int,
        num_classes: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        augment_validation: bool = False,
        test_batch: int = 1_000,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
        if len(train) != len(validation):
            raise ValueError(f"There are {len(train)} examples to train on, but {len(validation)} to validate on.")
        if sampler.smallest_batch < world_size:
            raise UserError(
                f"The smallest batch of a round has {sampler.smallest_batch} images, too few for {world_size} workers: "
                "enlarge training.batch_size and training.val_batch_size, set data.at_pass_end=wrap, or use "
                "fewer workers."
            )
        if test_batch < 1:
            raise UserError(f"test_batch must be at least 1, got {test_batch}.")
        self.sampler = sampler
        self.num_classes = num_classes
        self._train, self._validation, self._test = train, validation, test
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._device = torch.device(device)
        self._augment_validation = augment_validation
        self._test_batch = test_batch

    def epoch(self, index: int) -> int:
        return self.sampler.epoch(index)

    def round(self, index: int) -> RoundBatches:
        """This worker's slices of the round's batches. The same for the same `index`, whenever it is asked for."""
        plan = self.sampler.plan(index)
        drawn = [
            self._train.draws(numpy_generator(self._seed, "augment", index, step), len(rows))
            for step, rows in enumerate(plan.train)
        ]
        for_validation: Draws = ()
        if self._augment_validation:
            generator = numpy_generator(self._seed, "augment-validation", index)
            for_validation = self._validation.draws(generator, len(plan.val))
        (val,) = self._shares(self._validation, [plan.val], [for_validation])
        return RoundBatches(self._shares(self._train, plan.train, drawn), val)

    def dry_round(self) -> RoundBatches:
        """Two steps and their validation minibatch to try things on, with the extreme examples of both parts in them;
        the same on each worker, not a share."""
        generator, split = numpy_generator(self._seed, "dry round"), self.sampler.split(0)

        def batch(examples: Examples, part: Int[np.ndarray, " n"], size: int, *, draw: bool) -> Batch:
            first = np.intersect1d(examples.extreme_rows, part)
            others = np.setdiff1d(generator.choice(part, size, replace=False), first)
            rows = np.concatenate((first, others)).astype(np.int64)[:size]
            draws = examples.draws(generator, size) if draw else ()
            return self._gathered(examples, rows, draws, [1 / size])[0]

        train = batch(self._train, split.train, self.sampler.train_batch, draw=True)
        val = batch(self._validation, split.validation, self.sampler.val_batch, draw=self._augment_validation)
        return RoundBatches([train, train], val)

    def validation(self, epoch: int) -> Iterator[Batch]:
        return self._in_order(self._validation, self.sampler.split(epoch).validation)

    def test(self) -> Iterator[Batch]:
        return self._in_order(self._test, np.arange(len(self._test)))

    def training_images(self, rows: Int[np.ndarray, " n"]) -> list[Batch]:
        """Training examples as they are, with the targets they are taught with; the same on each worker, not a
        share."""
        return [
            batch
            for here in np.array_split(rows, -(-len(rows) // self._test_batch))
            for batch in self._gathered(self._train, here, (), [1 / len(rows)])
        ]

    def _in_order(self, examples: Examples, rows: Int[np.ndarray, " n"]) -> Iterator[Batch]:
        share = self._share(rows)
        for start in range(0, len(share), self._test_batch):
            yield from self._gathered(examples, share[start : start + self._test_batch], (), [1 / len(rows)])

    def _share(self, whole: np.ndarray) -> np.ndarray:
        return np.array_split(whole, self._world_size)[self._rank]

    def _shares(self, examples: Examples, wholes: Sequence[np.ndarray], drawn: Sequence[Draws]) -> list[Batch]:
        """This worker's slices of several global batches, gathered together where the examples can be."""
        shares, weights = [self._share(whole) for whole in wholes], [1 / len(whole) for whole in wholes]
        if getattr(examples, "collates", False):
            own_draws = [tuple(map(self._share, parts)) for parts in drawn]
            return [
                batch
                for rows, draws, weight in zip(shares, own_draws, weights, strict=True)
                for batch in self._gathered(examples, rows, draws, [weight])
            ]
        draws = tuple(np.concatenate([self._share(part) for part in parts]) for parts in zip(*drawn, strict=True))
        return self._gathered(examples, np.concatenate(shares), draws, weights, [len(share) for share in shares])

    def _gathered(
        self,
        examples: Examples,
        rows: Int[np.ndarray, " n"],
        draws: Draws,
        weights: Sequence[float],
        sizes: Sequence[int] | None = None,
    ) -> list[Batch]:
        """Batches of these sizes, whose examples have these weights."""
        sizes = [len(rows)] if sizes is None else sizes
        inputs, targets = examples.batch(rows, draws, self._device)
        parts = (inputs, targets, self._on_device(np.repeat(weights, sizes).astype(np.float32)), self._on_device(rows))
        return [Batch(*slices) for slices in zip(*(pieces(part, sizes) for part in parts), strict=True)]

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
