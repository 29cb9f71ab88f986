"""Detection of objects by YOLO-v3's cells: a row is a cell that has a box, the score is COCO's average precision."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.headline import AP, AP50, AP75
from l2t_ray.interfaces import Batch, Group, Metrics, Rows, Term, Terms, UserError
from l2t_ray.tasks.average_precision import THRESHOLDS, coco_metrics, mean_curves, score_rows
from l2t_ray.tasks.boxes import Cells, assign, cells_of, cells_of_boxes, decoded, overlaps_truth
from l2t_ray.tasks.detections import survivors
from l2t_ray.tasks.shares import share_of_gathered
from l2t_ray.tasks.shown import BoxMarks, Chart, Curves
from l2t_ray.tasks.soft_average_precision import judged, soft_error
from l2t_ray.tasks.yolo_loss import DetectionLoss, is_background, yolo_terms

DetectionError = Literal["edet", "edet50", "total"]

_WEIGHTS = {"darknet": (5.0, 0.5), "paper": (1.0, 1.0)}
"""Of l_loc and of l_conf_background in the task's own loss."""
_DRAWN = (0.5, 0.75)
"""Overlaps at which precision is drawn over recall."""


class Detection:
    """The student's outputs are raw predictions `[n, a, gh, gw, 5 + c]` by scale, finest first (`students.yolo`).

    Targets are a mapping of `boxes` `[n, m, 4]` (x1, y1, x2, y2 in pixels of the input), `labels` `[n, m]` (-1: there
    is none), `crowd` `[n, m]` (a region of many: neither to be found nor background) and `image` `[n]`, its number.
    The loss is a sum over cells and a mean over images.

    Args:
        class_names: of the c classes.
        anchors: (width, height) in pixels, by scale.
        strides: pixels a cell of each scale.
        loss: `darknet` or `paper` (`yolo_loss`).
        error: what the loss is judged by. `edet` is one minus a soft average precision of the boxes that are left after
            the suppression of double ones, all thresholds of COCO's; `edet50` that at an overlap of 0.5 alone; `total`
            the task's own loss.
        loc_weight: of l_loc in that loss; None: 5, and 1 in the paper's form.
        background_weight: of l_conf_background; None: 0.5, and 1 in the paper's form.
        ignore: a prediction that overlaps with a box by more, and is not its cell's, is no background.
        by_class: the kinds of l_cls are classes, and not scales.

    Raises:
        UserError: if anchors and strides are of different numbers of scales.
    """

    name = "detection"
    metrics = (AP, AP50, AP75)
    row_is_example = False
    scores_are_rows = True
    forms: Sequence[DetectionLoss] = get_args(DetectionLoss)

    def __init__(
        self,
        class_names: Sequence[str],
        anchors: Sequence[Sequence[tuple[float, float]]],
        strides: Sequence[int],
        *,
        loss: DetectionLoss = "darknet",
        error: DetectionError = "edet",
        loc_weight: float | None = None,
        background_weight: float | None = None,
        ignore: float = 0.7,
        by_class: bool = False,
    ):
        if len(anchors) != len(strides):
            raise UserError(f"anchors must be given for each of {len(strides)} strides, got {len(anchors)} groups.")
        self._num_classes, self._anchors, self._strides = len(class_names), anchors, strides
        self._error, self._ignore, self._by_class = error, ignore, by_class
        self._given_weights = (loc_weight, background_weight)
        self._take_form(loss)
        scales = tuple(f"stride {stride}" for stride in strides)
        self.kinds: Mapping[str, Sequence[str]] = {
            "l_loc": scales,
            "l_cls": tuple(class_names) if by_class else scales,
            "l_conf_object": scales,
            "l_conf_background": scales,
        }

    def in_form(self, form: DetectionLoss) -> "Detection":
        """The same task with another form of its own loss, weighed as that form is where no weights were given."""
        other = copy(self)
        other._take_form(form)
        return other

    def _take_form(self, form: DetectionLoss) -> None:
        self._loss: DetectionLoss = form
        self._loc_weight, self._background_weight = (
            usual if given is None else given for usual, given in zip(_WEIGHTS[form], self._given_weights, strict=True)
        )

    def num_rows(self, targets: Mapping[str, Tensor]) -> Int[Tensor, " n"]:
        """One an image, whatever is in it."""
        return torch.ones_like(targets["image"])

    def terms(self, outputs: Any, batch: Batch) -> Terms:
        """Terms: `l_loc`, `l_cls` and `l_conf_object` of cells that have a box, `l_conf_background` of all others.
        Their sum is the task's own loss. Rows: class decisions of cells that have a box, the other terms beside them.
        """
        raw, cells = self._flat(outputs, batch)
        boxes, labels, crowd = _truths(batch, raw)
        assigned = assign(boxes, labels, crowd, self._cells_of(boxes, outputs))
        near = overlaps_truth(decoded(raw[..., :4].detach(), cells), boxes, labels, crowd, self._ignore)
        height, width = batch.inputs.shape[2:]
        found = yolo_terms(raw, assigned, cells, height * width, self._loss)

        own, scale = batch.weights[assigned.image].to(raw), cells.scale[assigned.cell]
        owner = torch.arange(len(raw), device=raw.device)
        empty = self._background_weight * batch.weights[:, None].to(raw) * is_background(near, assigned)
        kinds = assigned.label if self._by_class else scale
        values = {
            "l_loc": Term(found.l_loc, self._loc_weight * own, scale, assigned.image),
            "l_cls": Term(found.l_cls, own, kinds, assigned.image),
            "l_conf_object": Term(found.l_conf_object, own, scale, assigned.image),
            "l_conf_background": Term(
                found.l_conf_background.flatten(),
                empty.flatten(),
                cells.scale.repeat(len(raw)),
                owner.repeat_interleave(len(cells.scale)),
            ),
        }
        if self._num_classes == 1:  # there is nothing to decide
            return Terms(raw, None, values)
        beside = _total({name: term for name, term in values.items() if name != "l_cls"})
        logits = raw[assigned.image, assigned.cell, 5:]
        return Terms(raw, Rows(logits, assigned.label, own, assigned.image, beside), values)

    def error(self, outputs: Any, batch: Batch, group: Group) -> Float[Tensor, ""]:
        """This worker's share of the error. `edet` is of all workers' images together: what each worker's boxes say is
        gathered, and the gradients in each one's own add up to the whole."""
        if self._error == "total":
            return _total(self.terms(outputs, batch).values)
        raw, cells = self._flat(outputs, batch)
        boxes, labels, crowd = _truths(batch, raw)
        predicted = _in_frame(decoded(raw[..., :4], cells), batch)
        rows = judged(predicted, raw[..., 4:], boxes, labels, crowd, self._cells_of(boxes, outputs))
        thresholds = THRESHOLDS[:1] if self._error == "edet50" else THRESHOLDS
        return share_of_gathered(lambda table: soft_error(table, thresholds), rows, group)

    def score(self, outputs: Any, batch: Batch) -> Float[Tensor, "rows k"]:
        """A row for each box that is left and for each truth, to be gathered and not added."""
        raw, cells = self._flat(outputs, batch)
        boxes, labels, crowd = _truths(batch, raw)
        predicted = _in_frame(decoded(raw[..., :4], cells), batch)
        return score_rows(predicted, survivors(predicted, raw[..., 4:]), boxes, labels, crowd, batch.targets["image"])

    def summarise(self, totals: Float[Tensor, "rows k"]) -> Metrics:
        """COCO's AP over overlaps .50:.95, at .5 and .75, and of small, medium and large boxes where there are any."""
        return coco_metrics(totals)

    def truths(self, batch: Batch) -> list[BoxMarks]:
        boxes, labels, crowd = (batch.targets[name].cpu().numpy() for name in ("boxes", "labels", "crowd"))
        kept = labels >= 0
        return [BoxMarks(boxes[n][kept[n]], labels[n][kept[n]], crowd=crowd[n][kept[n]]) for n in range(len(labels))]

    def answers(self, outputs: Any, batch: Batch) -> list[BoxMarks]:
        raw, cells = self._flat(outputs, batch)
        predicted = _in_frame(decoded(raw[..., :4], cells), batch)
        left = survivors(predicted, raw[..., 4:])
        corners, scores = predicted[left.image, left.cell], left.logit.sigmoid()
        return [
            BoxMarks(*(part[left.image == n].cpu().numpy() for part in (corners, left.label, scores)))
            for n in range(len(predicted))
        ]

    def charts(self, totals: Float[Tensor, "rows k"]) -> list[Chart]:
        """Precision over recall, a mean over classes, at overlaps of .5 and .75."""
        recalls, curves = mean_curves(totals, _DRAWN)
        titles = (f"AP{100 * threshold:.0f}: overlap of {threshold:g} or more" for threshold in _DRAWN)
        lines = {title: (recalls, curve) for title, curve in zip(titles, curves, strict=False)}
        return [Curves("precision_recall", "recall", "precision, mean over classes", lines)] if lines else []

    def _cells_of(self, boxes: Float[Tensor, "n m 4"], outputs: Any) -> Int[Tensor, "n m"]:
        return cells_of_boxes(boxes, self._grids(outputs), self._strides, self._anchors)

    def _grids(self, outputs: Any) -> list[tuple[int, int]]:
        return [(raw.shape[2], raw.shape[3]) for raw in outputs]

    def _flat(self, outputs: Any, batch: Batch) -> tuple[Float[Tensor, "n N k"], Cells]:
        """All predictions behind each other, at least in single precision, and what each stands for.

        Raises:
            UserError: if these are not predictions for each anchor and cell.
        """
        height, width = batch.inputs.shape[2:]
        expected = [
            [len(batch.inputs), len(own), height // stride, width // stride, 5 + self._num_classes]
            for own, stride in zip(self._anchors, self._strides, strict=True)
        ]
        given = [list(raw.shape) for raw in outputs] if isinstance(outputs, tuple | list) else type(outputs).__name__
        if given != expected:
            raise UserError(
                f"a student of detection must give predictions {expected}, by scale, and gives {given}; take "
                "student.name=yolo, or one whose anchors and strides are the task's."
            )
        flat = torch.cat([raw.flatten(1, 3) for raw in outputs], dim=1)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        return flat, cells_of(self._grids(outputs), self._strides, self._anchors, flat)


def _truths(batch: Batch, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    targets = batch.targets
    return targets["boxes"].to(like), targets["labels"], targets["crowd"]


def _in_frame(boxes: Float[Tensor, "n N 4"], batch: Batch) -> Float[Tensor, "n N 4"]:
    """What of the boxes is in the image: truths end there."""
    height, width = batch.inputs.shape[2:]
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def _total(values: Mapping[str, Term]) -> Float[Tensor, ""]:
    return sum(((term.weights * term.values).sum() for term in values.values()), start=torch.tensor(0.0))  # pyright: ignore
