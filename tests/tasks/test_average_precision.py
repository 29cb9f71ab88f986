"""Average precision is COCO's, to the last digits, however the images are shared out."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch

from l2t_ray.tasks.average_precision import coco_metrics, mean_curves, score_rows
from l2t_ray.tasks.detections import Survivors

SIZES = {"ap_small": 3, "ap_medium": 4, "ap_large": 5}

ONCE_FOUND = {
    "ap": 0.18798594310248692,
    "ap50": 0.4572510145109768,
    "ap75": 0.08031592784387764,
    "ap_small": 0.2954350435043504,
    "ap_medium": 0.1614801438593879,
    "ap_large": 0.2690594059405941,
}


def rows_of(num_images=25, num_classes=4, seed=0, sizes=(8.0, 160.0), per_image=8):
    """Truths, some of a crowd, and boxes near them with scores of which several are equal."""
    g = np.random.default_rng(seed)
    rows = []
    for image in range(num_images):
        for _ in range(g.integers(0, per_image)):
            label, low = g.integers(num_classes), g.uniform(0, 200, 2)
            size = np.exp(g.uniform(*np.log(sizes), 2))
            box = np.concatenate((low, low + size))
            rows.append([image, label, 0, *box, 1, g.random() < 0.15])
            for _ in range(g.integers(0, 4)):
                moved = box + g.normal(0, 0.12, 4) * np.tile(size, 2)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                guess = label if g.random() < 0.8 else g.integers(num_classes)
                rows.append([image, guess, round(g.random(), 2), *moved, 0, 0])
        for _ in range(g.integers(0, 4)):
            low = g.uniform(0, 200, 2)
            rows.append([image, g.integers(num_classes), round(g.random(), 2), *low, *(low + 40), 0, 0])
    return torch.tensor(np.array(rows, dtype=float))


def from_pycocotools(rows):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truths, given = [], []
    for number, (image, label, score, x1, y1, x2, y2, is_truth, crowd) in enumerate(rows.tolist(), start=1):
        box = [x1, y1, x2 - x1, y2 - y1]
        shared = {"id": number, "image_id": int(image), "category_id": int(label), "bbox": box, "area": box[2] * box[3]}
        if is_truth:
            truths.append({**shared, "iscrowd": int(crowd)})
        else:
            given.append({**shared, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = {
            "images": [{"id": int(n)} for n in rows[:, 0].unique()],
            "categories": [{"id": int(n)} for n in rows[:, 1].unique()],
            "annotations": truths,
        }
        known.createIndex()
        found = evaluation.COCOeval(known, known.loadRes(given), "bbox")
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found.stats


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 1, "num_classes": 1, "per_image": 30},
        {"seed": 2, "num_classes": 40},
        {"seed": 3, "sizes": (2.0, 30.0)},
        {"seed": 4, "sizes": (100.0, 300.0), "num_images": 3},
    ],
)
def test_it_is_what_pycocotools_finds(settings):
    rows = rows_of(**settings)
    stats, found = from_pycocotools(rows), coco_metrics(rows)
    assert [found["ap"], found["ap50"], found["ap75"]] == pytest.approx(stats[:3], abs=1e-9)
    for name, place in SIZES.items():
        assert found.get(name, -1) == pytest.approx(stats[place], abs=1e-9)
    assert 0.02 < found["ap"] < found["ap50"] < 0.98


def test_it_is_what_pycocotools_once_found():
    """Its numbers of the first case, for where it is not installed."""
    found = coco_metrics(rows_of())
    assert found == pytest.approx(ONCE_FOUND, abs=1e-9)


def test_how_images_are_shared_out_does_not_count():
    rows = rows_of()
    first, second = rows[rows[:, 0] % 3 == 1], rows[rows[:, 0] % 3 != 1]
    assert coco_metrics(torch.cat((second, first))) == coco_metrics(rows)


def test_right_answers_alone_have_a_precision_of_one():
    rows = rows_of()
    truths = rows[(rows[:, 7] > 0) & (rows[:, 8] == 0)]
    given = truths.clone()
    given[:, 7], given[:, 2] = 0, torch.linspace(0.1, 0.9, len(given))
    assert coco_metrics(torch.cat((truths, given)))["ap"] == pytest.approx(1)
    given[:, 3:7] += 500
    assert coco_metrics(torch.cat((truths, given)))["ap"] == 0


def test_without_truths_there_is_no_number():
    rows = rows_of()
    found = coco_metrics(rows[rows[:, 7] == 0])
    assert math.isnan(found["ap"]) and found.keys() == {"ap", "ap50", "ap75"}
    assert math.isnan(coco_metrics(torch.zeros(0, 9).double())["ap50"])


def test_boxes_and_truths_of_a_minibatch_become_rows():
    predicted = torch.arange(24.0).reshape(2, 3, 4)
    left = Survivors(torch.tensor([1]), torch.tensor([2]), torch.tensor([4]), torch.tensor([0.0]))
    boxes = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]], [[0, 0, 0, 0], [5, 6, 7, 8]]])
    labels, crowd = torch.tensor([[3, -1], [-1, 0]]), torch.tensor([[False, False], [False, True]])
    rows = score_rows(predicted, left, boxes, labels, crowd, torch.tensor([70, 80]))
    assert rows.tolist() == [
        [80, 4, 0.5, 20, 21, 22, 23, 0, 0],
        [70, 3, 0, 1, 2, 3, 4, 1, 0],
        [80, 0, 0, 5, 6, 7, 8, 1, 1],
    ]


def test_curves_are_those_of_a_detection_made_by_hand():
    """Two objects of one class; the surest box and the third are right, the second lies beside."""
    first, second = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)
    rows = torch.tensor([
        [0, 0, 0, *first, 1, 0],
        [0, 0, 0, *second, 1, 0],
        [0, 0, 0.9, *first, 0, 0],
        [0, 0, 0.8, 50, 0, 60, 10, 0, 0],
        [0, 0, 0.7, 20, 0, 30, 7, 0, 0],  # an overlap of 0.7
    ], dtype=torch.float64)  # fmt: skip
    recalls, (half, tight) = mean_curves(rows, (0.5, 0.75))
    np.testing.assert_allclose(half, np.where(recalls <= 0.5, 1, 2 / 3))
    np.testing.assert_allclose(tight, np.where(recalls <= 0.5, 1, 0))


def test_the_area_under_the_mean_curve_is_the_average_precision():
    rows = rows_of()
    metrics, (_, (half, tight)) = coco_metrics(rows), mean_curves(rows, (0.5, 0.75))
    assert (half.mean(), tight.mean()) == pytest.approx((metrics["ap50"], metrics["ap75"]), abs=1e-12)
    assert mean_curves(rows[rows[:, 7] == 0], (0.5,))[1] == []
