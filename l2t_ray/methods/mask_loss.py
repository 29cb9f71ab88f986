"""Fixed losses for images with masks: class weights, focal, Dice, Jaccard and Lovasz, alone or with cross-entropy.

They are the controls of a learned loss that aims at an overlap. Formulas are those of segmentation-models-pytorch 0.6
(MIT), computed anew: that package brings image models and their downloads with it, and its losses are a few lines.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor

from l2t_ray.core.student import RowLoss, cross_entropy, weighted_cross_entropy
from l2t_ray.data.row_shares import RowShares
from l2t_ray.interfaces import Batch, Data, RoundBatches, Task, UserError
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.tasks.pixel_terms import focal_loss
from l2t_ray.tasks.segmentation import Segmentation

TINY = 1e-7
"""Least denominator: of a class that is not there and that nobody answers."""
COUNTED_AT_ONCE = 64
"""Images whose masks are counted together, for class weights."""

Overlap = Callable[[Float[Tensor, "n c"], Int[Tensor, " n"]], Float[Tensor, ""]]
"""`(logits, labels) -> a loss of all these pixels together`, at least one."""


class MaskLossConfig(MethodSettings):
    """A fixed loss for images with masks, of all pixels of each crop that count, chosen or not.

    Class weights and focal loss are sums over pixels, the same on any number of workers. Dice, Jaccard and Lovasz are
    losses of a minibatch as a whole: each worker takes that of its own slice, and it counts by the slice's share of the
    pixels, as under DistributedDataParallel. An auxiliary head keeps its cross-entropy.
    """

    name: Literal["mask_loss"] = "mask_loss"
    form: Literal["class_weights_inverse", "class_weights_root", "focal", "dice", "jaccard", "lovasz"] = "dice"
    """`class_weights_inverse`, `class_weights_root`: cross-entropy in which a class counts by one over its share of the
    training part's pixels, or over the root of that, 1 on average over pixels; `focal` (Lin et al. 2017); `dice`,
    `jaccard`: one minus the mean over classes of the soft overlap; `lovasz`: Lovasz-softmax (Berman et al. 2018)."""
    with_cross_entropy: bool = False
    """Whether cross-entropy is added."""

    @property
    def called(self) -> str:
        return f"cross_entropy+{self.form}" if self.with_cross_entropy else self.form

    @model_validator(mode="after")
    def _an_overlap_is_of_all_images_alike(self) -> "MaskLossConfig":
        if self.clean_images == "trusted" and self.form in OVERLAPS:
            raise ValueError(
                f"clean_images 'trusted' puts some images of a minibatch under another loss, and {self.form} is a loss "
                "of the minibatch as a whole; set clean_images=mixed or fine_tuned"
            )
        return self

    def phases(self, parts: Parts) -> list[Phase]:
        """As of every fixed loss, with all pixels for rows.

        Raises:
            UserError: if the images have no masks, or an overlap would be taken of two heads at once.
        """
        task, group = segmentation(parts.trainee.task, self.name), parts.group
        if self.form in OVERLAPS:
            refuse_joined_heads(task, self.form)
        return [
            replace(phase, data=RowShares(AllPixels(phase.data, task), task, group)) for phase in super().phases(parts)
        ]

    def fixed_loss(self, parts: Parts) -> RowLoss:
        loss = self._form(parts)
        if not self.with_cross_entropy:
            return loss
        return lambda logits, labels: cross_entropy(logits, labels) + loss(logits, labels)

    def _form(self, parts: Parts) -> RowLoss:
        match self.form:
            case "class_weights_inverse" | "class_weights_root":
                power = 1.0 if self.form == "class_weights_inverse" else 0.5
                return weighted_cross_entropy(class_weights(pixels_by_class(parts), power).to(parts.device))
            case "focal":
                return focal_loss
            case overlap:
                return of_each_row(OVERLAPS[overlap])


class AllPixels:
    """Minibatches whose rows are all pixels that count, whichever were chosen (the `Data` protocol). Their weights are
    for the rows that were."""

    def __init__(self, data: Data, task: Segmentation):
        self._data, self._task = data, task

    @property
    def num_classes(self) -> int:
        return self._data.num_classes

    def round(self, index: int) -> RoundBatches:
        train, val = self._data.round(index)
        return RoundBatches([self._task.with_all_pixels(batch) for batch in train], self._task.with_all_pixels(val))

    def epoch(self, index: int) -> int:
        return self._data.epoch(index)

    def validation(self, epoch: int) -> Iterable[Batch]:
        return self._data.validation(epoch)

    def test(self) -> Iterable[Batch]:
        return self._data.test()


def pixels_by_class(parts: Parts) -> Int[Tensor, " c"]:
    """How many pixels of the training part (of the first epoch) have each class: all of its masks, on each worker.

    Raises:
        UserError: if the images have no masks.
    """
    task, rows = segmentation(parts.trainee.task, "mask_loss"), parts.source.split(0).train
    counts = torch.zeros(parts.num_classes, dtype=torch.int64)
    for here in np.array_split(rows, -(-len(rows) // COUNTED_AT_ONCE)):
        for batch in parts.source.images(here):
            counts += task.class_counts(batch.targets).cpu()
    return counts


def class_weights(counts: Int[Tensor, " c"], power: float) -> Float[Tensor, " c"]:
    """Weights that go by `share ** -power`, with a mean over pixels of 1, so that the push is that of cross-entropy.

    A class that has no pixel weighs as much as the rarest one that has some.
    """
    shares = counts.double() / counts.sum()
    raw = shares.clamp(min=shares[shares > 0].min().item()) ** -power
    return (raw / (shares * raw).sum()).float()


def dice_loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The sum over classes that are there of `1 - 2 p.t / (p + t)`, sums over all pixels, divided by the number of all
    classes (Milletari et al., 3DV 2016; smp's `DiceLoss`)."""
    hits, answers, truths = _overlaps(logits, labels)
    return _mean_loss(2 * hits / (answers + truths).clamp(min=TINY), truths)


def jaccard_loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """As `dice_loss`, of `1 - p.t / (p + t - p.t)` (Rahman & Wang, ISVC 2016; smp's `JaccardLoss`)."""
    hits, answers, truths = _overlaps(logits, labels)
    return _mean_loss(hits / (answers + truths - hits).clamp(min=TINY), truths)


def lovasz_loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean over classes that are there of the Lovasz extension of the Jaccard loss, at the errors `|t - p|`
    (Berman et al., CVPR 2018, Alg. 1; smp's `LovaszLoss`): pixels of all images together."""
    p, present = logits.softmax(dim=1), labels.unique()
    truth = labels[:, None] == present
    errors, order = (truth.to(p) - p[:, present]).abs().sort(dim=0, descending=True)
    is_truth = truth.gather(0, order).long()
    truths, seen = is_truth.sum(dim=0), is_truth.cumsum(dim=0)
    places = torch.arange(1, len(p) + 1, device=p.device)[:, None]
    # Of the first k errors: one minus (truths - hits) / (truths + false alarms).
    jaccard = 1 - (truths - seen).to(p) / (truths + places - seen).to(p)
    slopes = jaccard.diff(dim=0, prepend=torch.zeros_like(jaccard[:1]))
    return (errors * slopes).sum(dim=0).mean()


OVERLAPS: dict[str, Overlap] = {"dice": dice_loss, "jaccard": jaccard_loss, "lovasz": lovasz_loss}


def of_each_row(overlap: Overlap) -> RowLoss:
    """A loss of all rows together as one that each of them has: weighed by the rows' shares of the global minibatch it
    adds up to itself times the share of these rows."""

    def loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return overlap(logits, labels).expand(len(labels)) if len(labels) else logits.sum(dim=1)

    return loss


def segmentation(task: Task, what: str) -> Segmentation:
    """The task, for what is for images with masks.

    Raises:
        UserError: if it is another one.
    """
    if not isinstance(task, Segmentation):
        raise UserError(
            f"{what} is for images with masks, and the task here is {task.name}; name another one, or a data set with "
            "masks."
        )
    return task


def refuse_joined_heads(task: Segmentation, what: str) -> None:
    """
    Raises:
        UserError: if the rows of a minibatch are of two heads, for a loss of all of them together.
    """
    if task.auxiliary == "same":
        raise UserError(
            f"data.masks.auxiliary is 'same', which makes rows of both heads, and {what} is of all rows together; set "
            "data.masks.auxiliary=cross_entropy, or take another loss."
        )


def _overlaps(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
    p = logits.softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1]).to(p)
    return (p * truth).sum(dim=0), p.sum(dim=0), truth.sum(dim=0)


def _mean_loss(scores: Float[Tensor, " c"], truths: Float[Tensor, " c"]) -> Float[Tensor, ""]:
    return torch.where(truths > 0, 1 - scores, 0).mean()
