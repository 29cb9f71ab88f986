"""One worker's share of every round: gathered, augmented and normalised in one go."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.augment import crop_and_flip, normalise
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.interfaces import Batch, RoundBatches, UserError

Draws = tuple[Int[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]
"""Window offsets and flips of one batch."""


class RoundLoader:
    """Serves worker `rank` of `world_size` (the `Data` protocol).

    A worker takes a contiguous slice of each global batch, cut as `np.array_split` does. Crops and flips are drawn for
    the global batch and then cut, so that the number of workers changes no pixel. Batch `indices` are row numbers of
    `dataset.train` (of `dataset.test` in `test()`), the ones that index `observed_labels`; `positions` of the image
    set turns them into places in the published set.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: RoundSampler,
        *,
        seed: int,
        observed_labels: Int[np.ndarray, " n"] | None = None,
        validation_labels: Literal["clean", "observed"] = "clean",
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        augment: Literal["none", "flip", "crop_flip"] = "none",
        padding: int = 4,
        padding_mode: Literal["zero", "reflect"] = "zero",
        augment_validation: bool = False,
        test_batch: int = 1_000,
    ):
        """
        Args:
            dataset: images and clean labels.
            sampler: which rows make up which round.
            seed: of the augmentation.
            observed_labels: what the student is taught, one a training image; None for the clean labels.
            validation_labels: what the student is judged by.
            augment: what is drawn for each training image.
            padding, padding_mode: as in `crop_and_flip`.
            augment_validation: augment validation batches too, as the released code does.
            test_batch: images in a batch of `validation()` and `test()`, which are never augmented.

        Raises:
            UserError: if some worker would find a batch empty, or the padding does not fit the images.
            ValueError: if `observed_labels` has not one label an image.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
        if sampler.smallest_batch < world_size:
            raise UserError(
                f"The smallest batch of a round has {sampler.smallest_batch} images, too few for {world_size} workers: "
                "enlarge training.batch_size and training.val_batch_size, set data.at_pass_end=wrap, or use "
                "fewer workers."
            )
        size = min(dataset.train.images.shape[2:])
        if augment == "crop_flip" and padding_mode == "reflect" and padding >= size:
            raise UserError(f"data.padding must be below the image size {size} to reflect, got {padding}.")
        if test_batch < 1:
            raise UserError(f"test_batch must be at least 1, got {test_batch}.")
        clean = dataset.train.labels
        observed = clean if observed_labels is None else observed_labels
        if len(observed) != len(clean):
            raise ValueError(f"There are {len(clean)} training images but {len(observed)} observed labels.")
        self.dataset = dataset
        self.sampler = sampler
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.augment = augment
        self.padding = padding if augment == "crop_flip" else 0
        self.padding_mode: Literal["zero", "reflect"] = padding_mode
        self.augment_validation = augment_validation
        self.test_batch = test_batch
        self._observed = observed
        self._judged = clean if validation_labels == "clean" else observed

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    def epoch(self, index: int) -> int:
        return self.sampler.epoch(index)

    def round(self, index: int) -> RoundBatches:
        """This worker's slices of the round's batches. The same for the same `index`, whenever it is asked for."""
        plan = self.sampler.plan(index)
        wholes = [*plan.train, plan.val]
        shares = [self._share(rows) for rows in wholes]
        rows = np.concatenate(shares)
        labels = np.concatenate([*(self._observed[share] for share in shares[:-1]), self._judged[shares[-1]]])
        weights = np.concatenate(
            [np.full(len(share), 1 / len(whole)) for share, whole in zip(shares, wholes, strict=True)]
        )
        pixels = self._on_device(self.dataset.train.images[rows])
        if self.augment != "none":
            draws = [self._draws(index, step, len(whole)) for step, whole in enumerate(plan.train)]
            draws.append(self._validation_draws(index, len(plan.val)))
            offsets, flips = (
                np.concatenate([self._share(part) for part in parts]) for parts in zip(*draws, strict=True)
            )
            pixels = crop_and_flip(
                pixels,
                self._on_device(offsets),
                self._on_device(flips),
                padding=self.padding,
                mode=self.padding_mode,
            )
        *train, val = self._batches(pixels, labels, weights, rows, [len(share) for share in shares])
        return RoundBatches(train, val)

    def validation(self, epoch: int) -> Iterator[Batch]:
        return self._in_order(self.dataset.train, self.sampler.split(epoch).validation, self._judged)

    def test(self) -> Iterator[Batch]:
        test = self.dataset.test
        return self._in_order(test, np.arange(len(test)), test.labels)

    def training_images(self, rows: Int[np.ndarray, " n"]) -> list[Batch]:
        """Images of the training set with their observed labels, unaugmented; the same on each worker, not a share."""
        pieces = np.array_split(rows, -(-len(rows) // self.test_batch))
        return [
            batch
            for here in pieces
            for batch in self._batches(
                self._on_device(self.dataset.train.images[here]),
                self._observed[here],
                np.full(len(here), 1 / len(rows)),
                here,
                [len(here)],
            )
        ]

    def _in_order(
        self, images: ImageSet, rows: Int[np.ndarray, " n"], labels: Int[np.ndarray, " l"]
    ) -> Iterator[Batch]:
        share = self._share(rows)
        for start in range(0, len(share), self.test_batch):
            here = share[start : start + self.test_batch]
            weights = np.full(len(here), 1 / len(rows))
            yield from self._batches(self._on_device(images.images[here]), labels[here], weights, here, [len(here)])

    def _share(self, whole: np.ndarray) -> np.ndarray:
        return np.array_split(whole, self.world_size)[self.rank]

    def _batches(
        self, pixels: Tensor, labels: np.ndarray, weights: np.ndarray, rows: np.ndarray, sizes: Sequence[int]
    ) -> list[Batch]:
        parts = (
            normalise(pixels, self.dataset.mean, self.dataset.std),
            self._on_device(labels),
            self._on_device(weights.astype(np.float32)),
            self._on_device(rows),
        )
        return [Batch(*slices) for slices in zip(*(part.split(list(sizes)) for part in parts), strict=True)]

    def _draws(self, index: int, step: int, size: int) -> Draws:
        return self._drawn(numpy_generator(self.seed, "augment", index, step), size)

    def _validation_draws(self, index: int, size: int) -> Draws:
        if self.augment_validation:
            return self._drawn(numpy_generator(self.seed, "augment-validation", index), size)
        return np.full((size, 2), self.padding), np.zeros(size, dtype=bool)

    def _drawn(self, generator: np.random.Generator, size: int) -> Draws:
        flips = generator.random(size) < 0.5
        if self.augment == "flip":
            return np.full((size, 2), self.padding), flips
        return generator.integers(0, 2 * self.padding, (size, 2), endpoint=True), flips

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
