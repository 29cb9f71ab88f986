"""Semantic segmentation: a row is a pixel (supplement, Sec. 2), the score is the mean intersection over union."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.headline import ACCURACY, CLASS_ACCURACY, ERROR, MIOU
from l2t_ray.interfaces import Batch, Group, Metrics, Rows, Term, Terms, UserError
from l2t_ray.tasks.pixel_terms import READ_BORDERS, TERMS, Pixels, SegmentationTerm, dice, jaccard, touching
from l2t_ray.tasks.shares import share_of
from l2t_ray.tasks.shown import ByClass, Chart, ClassMap, ClassMatrix

SegmentationError = Literal["cross_entropy", "soft_miou", "soft_dice"]
AuxiliaryLoss = Literal["cross_entropy", "same"]


class Segmentation:
    """The student's outputs are logits `[n, c, h, w]`, or those and an auxiliary head's; targets are class masks.

    Targets are `[n, h, w]`, or a mapping of `mask` and `chosen` `[n, m]`: the pixels (row-major) that are trained on,
    -1 for none. Who serves the minibatch chooses them, for a step that is computed again must choose the same.

    Args:
        class_names: of the c classes.
        ignore: the label of pixels that do not count.
        error: the validation error: cross-entropy over all pixels; or one minus the mean over classes of soft
            intersection over union, or of soft Dice, of the whole validation minibatch.
        loss_terms: what the task's own loss is the sum of (`pixel_terms`).
        auxiliary: what an auxiliary head is trained under: plain cross-entropy, which is not learned; or the `same`
            loss as the main head, of which its pixels are then further rows and terms.
        aux_weight: what that counts (PSPNet: 0.4).
    """

    name = "segmentation"
    metrics = (MIOU, ACCURACY, CLASS_ACCURACY, ERROR)
    row_is_example = False

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        ignore: int = 255,
        error: SegmentationError = "cross_entropy",
        loss_terms: Sequence[SegmentationTerm] = ("cross_entropy", "jaccard"),
        auxiliary: AuxiliaryLoss = "cross_entropy",
        aux_weight: float = 0.4,
    ):
        self.ignore, self._error = ignore, error
        self.class_names, self._num_classes = tuple(class_names), len(class_names)
        self._loss_terms, self.auxiliary, self._aux_weight = tuple(loss_terms), auxiliary, aux_weight
        self.kinds: Mapping[str, Sequence[str]] = {
            name: self.class_names if name == "cross_entropy" else ("all",) for name in loss_terms
        }

    def num_rows(self, targets: Tensor | Mapping[str, Tensor]) -> Int[Tensor, " n"]:
        labels, _ = self._rows_of(targets)
        return (labels != self.ignore).sum(dim=1)

    def with_all_pixels(self, batch: Batch) -> Batch:
        """The minibatch as if no pixels had been chosen. Its weights are not those of its rows then."""
        return batch._replace(targets=_mask(batch))

    def class_counts(self, targets: Tensor | Mapping[str, Tensor]) -> Int[Tensor, " c"]:
        """How many of the rows have each class."""
        labels, _ = self._rows_of(targets)
        return torch.stack([(labels == number).sum() for number in range(self._num_classes)])

    def terms(self, outputs: Tensor | tuple[Tensor, Tensor], batch: Batch) -> Terms:
        """Rows are the chosen pixels that count. Terms are those of each head that is under the loss: of pixels, and of
        images (over their chosen pixels; an image is weighed by its rows)."""
        logits, aux = outputs if isinstance(outputs, tuple) else (outputs, None)
        self._check(logits, batch)
        heads, rest = [self._rows(logits, batch)], None
        if aux is not None:
            aux_rows = self._rows(aux, batch)
            if self.auxiliary == "same":
                heads.append(aux_rows._replace(weights=self._aux_weight * aux_rows.weights))
            else:
                losses = F.cross_entropy(aux_rows.logits, aux_rows.labels, reduction="none")
                rest = self._aux_weight * aux_rows.total(losses)
        is_border = None if READ_BORDERS.isdisjoint(self._loss_terms) else self._is_border(batch)
        pixels = [Pixels(rows, is_border, len(logits)) for rows in heads]
        values = {name: Term(*_joined([TERMS[name](head) for head in pixels])) for name in self._loss_terms}
        return Terms(logits, Rows(*_joined([rows[:4] for rows in heads])), values, rest)

    def error(self, outputs: Tensor | tuple[Tensor, Tensor], batch: Batch, group: Group) -> Float[Tensor, ""]:
        """This worker's share of the error over all pixels of the global batch."""
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        mask = _mask(batch)
        self._check(logits, batch)
        counts = mask != self.ignore
        if self._error == "cross_entropy":
            losses = F.cross_entropy(logits, mask, ignore_index=self.ignore, reduction="none")
            sums = torch.stack((losses.sum(), counts.sum().to(losses)))
            return share_of(lambda total: total[0] / total[1].clamp(min=1), sums, group)
        return share_of(self._overlap_error, self._overlaps(logits, mask, counts), group)

    def score(self, outputs: Tensor | tuple[Tensor, Tensor], batch: Batch) -> Float[Tensor, " s"]:
        """The confusion matrix of all pixels that count, row the class, and the sum of their cross-entropy."""
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        mask = _mask(batch)
        self._check(logits, batch)
        counts = mask != self.ignore
        pairs = mask[counts] * self._num_classes + logits.argmax(dim=1)[counts]
        confusion = torch.bincount(pairs, minlength=self._num_classes**2).double()
        losses = F.cross_entropy(logits, mask, ignore_index=self.ignore, reduction="sum")
        return torch.cat((confusion, losses.double().reshape(1)))

    def summarise(self, totals: Float[Tensor, " s"]) -> Metrics:
        """Mean intersection over union over the classes that occur, accuracies by pixel and by class, the mean
        cross-entropy, and the intersection over union of each class."""
        hits, truth, union = self._pixels(totals)
        iou, recall = hits / union, hits / truth
        occurs = union > 0
        metrics = {
            "miou": iou[occurs].mean().item(),
            "accuracy": (hits.sum() / truth.sum()).item(),
            "class_accuracy": recall[truth > 0].mean().item(),
            "error": (totals[-1] / truth.sum()).item(),
        }
        names = self.class_names
        return metrics | {f"iou_{name}": iou[k].item() for k, name in enumerate(names) if occurs[k]}

    def truths(self, batch: Batch) -> list[ClassMap]:
        return self._maps(_mask(batch))

    def answers(self, outputs: Tensor | tuple[Tensor, Tensor], batch: Batch) -> list[ClassMap]:
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return self._maps(logits.argmax(dim=1).masked_fill(_mask(batch) == self.ignore, self.ignore))

    def charts(self, totals: Float[Tensor, " s"]) -> list[Chart]:
        """The confusion matrix of pixels, and the intersection over union of each class."""
        metrics = self.summarise(totals)
        names = self.class_names
        overlaps = {name: metrics[f"iou_{name}"] for name in names if f"iou_{name}" in metrics}
        counts = self._confusion(totals).cpu().numpy().astype(np.int64)
        return [
            ClassMatrix(counts),
            ByClass(
                "class_iou", "Test IoU by class", "intersection over union [%]", overlaps, ("mIoU", metrics["miou"])
            ),
        ]

    def _maps(self, masks: Int[Tensor, "n h w"]) -> list[ClassMap]:
        return [ClassMap(classes, self.ignore) for classes in masks.cpu().numpy()]

    def _confusion(self, totals: Float[Tensor, " s"]) -> Float[Tensor, "c c"]:
        return totals[:-1].reshape(self._num_classes, self._num_classes)

    def _pixels(self, totals: Float[Tensor, " s"]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each class: pixels that are right, that are of it, and that are of it or said to be."""
        confusion = self._confusion(totals)
        hits, truth, answers = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        return hits, truth, truth + answers - hits

    def _check(self, logits: Any, batch: Batch) -> None:
        """
        Raises:
            UserError: if these are not one number for each class and pixel.
        """
        mask = _mask(batch)
        expected = [len(mask), self._num_classes, *mask.shape[1:]]
        if not isinstance(logits, Tensor) or list(logits.shape) != expected:
            given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"a student of segmentation must give logits {expected}, one for each class and pixel, and gives "
                f"{given}; take student.name=pspnet, or one whose outputs have the size of its inputs."
            )

    def _rows_of(self, targets: Tensor | Mapping[str, Tensor]) -> tuple[Int[Tensor, "n m"], Int[Tensor, "n m"] | None]:
        """The labels of each example's rows, and which pixels they are (None: all)."""
        if not isinstance(targets, Mapping):
            return targets.flatten(1), None
        chosen = targets["chosen"]
        labels = targets["mask"].flatten(1).gather(1, chosen.clamp(min=0))
        return labels.masked_fill(chosen < 0, self.ignore), chosen

    def _rows(self, logits: Float[Tensor, "n c h w"], batch: Batch) -> Rows:
        labels, chosen = self._rows_of(batch.targets)
        flat = logits.flatten(2)
        if chosen is not None:
            flat = flat.gather(2, chosen.clamp(min=0)[:, None].expand(-1, flat.shape[1], -1))
        counts: Bool[Tensor, "n m"] = labels != self.ignore
        owner = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[counts]
        return Rows(flat.transpose(1, 2)[counts], labels[counts], batch.weights[owner], owner)

    def _is_border(self, batch: Batch) -> Bool[Tensor, " r"]:
        """Which rows are pixels that touch another class."""
        labels, chosen = self._rows_of(batch.targets)
        found = touching(_mask(batch), self.ignore).flatten(1)
        if chosen is not None:
            found = found.gather(1, chosen.clamp(min=0))
        return found[labels != self.ignore]

    def _overlaps(self, logits: Tensor, mask: Tensor, counts: Tensor) -> Float[Tensor, " sums"]:
        p = logits.softmax(dim=1).transpose(0, 1)[:, counts]
        truth = F.one_hot(mask[counts], self._num_classes).t().to(p)
        return torch.cat(((p * truth).sum(dim=1), p.sum(dim=1), truth.sum(dim=1)))

    def _overlap_error(self, sums: Float[Tensor, " sums"]) -> Float[Tensor, ""]:
        hits, answers, truths = sums.chunk(3)
        present = truths > 0
        ratio = (dice if self._error == "soft_dice" else jaccard)(hits, answers, truths)
        return torch.where(present, 1 - ratio, 0).sum() / present.sum().clamp(min=1)


def _mask(batch: Batch) -> Int[Tensor, "n h w"]:
    return batch.targets["mask"] if isinstance(batch.targets, Mapping) else batch.targets


def _joined(heads: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The same columns of several heads, one below the other."""
    return heads[0] if len(heads) == 1 else [torch.cat(columns) for columns in zip(*heads, strict=True)]
