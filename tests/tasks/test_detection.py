"""Detection as a task: what it gives, what it refuses, how it is judged and scored."""

import math

import numpy as np
import pytest
import torch
from detection_problem import ANCHORS, CLASSES, SIZE, STRIDES, batch_of, part_of, student, task_of

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.interfaces import StudentState, Task, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.boxes import cells_of_boxes
from l2t_ray.tasks.detection import Detection
from l2t_ray.tasks.detections import score_logit, survivors
from l2t_ray.tasks.shown import ShowsAnswers
from l2t_ray.tasks.soft_average_precision import judged, soft_error
from l2t_ray.training.evaluate import evaluate

THRESHOLDS = [0.5 + 0.05 * k for k in range(10)]


def sharp(batch, sure=9.0):
    """Raw outputs of a student that answers with the truth, where its cells can."""
    n, k = len(batch.inputs), 5 + len(CLASSES)
    outputs = [torch.zeros(n, 2, SIZE // s, SIZE // s, k).double() for s in STRIDES]
    for raw in outputs:
        raw[..., 4:] = -sure
    cells = cells_of_boxes(batch.targets["boxes"], [(SIZE // s, SIZE // s) for s in STRIDES], STRIDES, ANCHORS)
    for image in range(n):
        for place, label in enumerate(batch.targets["labels"][image].tolist()):
            if label < 0 or batch.targets["crowd"][image, place]:
                continue
            cell, scale = cells[image, place].item(), 0
            if cell >= 2 * (SIZE // STRIDES[0]) ** 2:
                cell, scale = cell - 2 * (SIZE // STRIDES[0]) ** 2, 1
            side, stride = SIZE // STRIDES[scale], STRIDES[scale]
            anchor, row, column = cell // side**2, cell % side**2 // side, cell % side
            x1, y1, x2, y2 = batch.targets["boxes"][image, place]
            aw, ah = ANCHORS[scale][anchor]
            raw = outputs[scale][image, anchor, row, column]
            raw[:4] = torch.stack((
                ((x1 + x2) / 2 / stride - column).logit(eps=1e-6),
                ((y1 + y2) / 2 / stride - row).logit(eps=1e-6),
                ((x2 - x1) / aw).log(),
                ((y2 - y1) / ah).log(),
            ))  # fmt: skip
            raw[4:] = -sure
            raw[4], raw[5 + label] = sure, sure
    return tuple(outputs)


def apart(seed=3):
    """A minibatch whose truths have a cell each and do not overlap."""
    batch = batch_of(4, seed)
    places = torch.tensor([[1.0, 1, 12, 13], [17, 2, 30, 12], [2, 18, 13, 31], [16, 16, 31, 30]])
    batch.targets["boxes"] = places.double().repeat(4, 1, 1)
    batch.targets["crowd"][:] = False
    return batch


def test_it_is_a_task_whose_terms_are_those_it_names():
    task, batch = task_of(), batch_of(4, 1)
    assert isinstance(task, Task)
    terms = task.terms(student()(batch.inputs), batch)
    assert terms.values.keys() == task.kinds.keys()
    for name, term in terms.values.items():
        assert len(term.values) == len(term.kinds) == len(term.weights) == len(term.owner)
        assert term.kinds.min() >= 0 and term.kinds.max() < len(task.kinds[name])
    assert task.num_rows(batch.targets).tolist() == [1] * 4
    by_class = task_of(by_class=True)
    assert by_class.kinds["l_cls"] == CLASSES
    rows = by_class.terms(student()(batch.inputs), batch).rows
    assert by_class.terms(student()(batch.inputs), batch).values["l_cls"].kinds.tolist() == rows.labels.tolist()


def test_rows_and_what_is_beside_them_are_the_whole_loss():
    task, batch = task_of(), batch_of(4, 1)
    terms = task.terms(student()(batch.inputs), batch)
    whole = sum((term.weights * term.values).sum() for term in terms.values.values())
    torch.testing.assert_close(terms.rows.total(terms.values["l_cls"].values), whole)
    torch.testing.assert_close(task_of(error="total").error(student()(batch.inputs), batch, SingleProcess()), whole)


@pytest.mark.parametrize("form", ["darknet", "paper"])
def test_the_truth_has_a_smaller_loss_than_anything_near_it(form):
    batch = apart()
    task, truth = task_of(loss=form, error="total"), sharp(apart())
    least = task.error(truth, batch, SingleProcess())
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        moved = tuple(raw + 0.3 * torch.randn(raw.shape, generator=g).double() for raw in truth)
        assert task.error(moved, batch, SingleProcess()) > least


@pytest.mark.parametrize("form", ["darknet", "paper"])
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_first_and_second_derivatives_are_finite_where_logits_are_extreme(form, size):
    batch, task = batch_of(3, 2), task_of(loss=form)
    leaves = tuple((size * raw.detach().sign()).requires_grad_() for raw in student()(batch.inputs))
    error = task_of(error="edet").error(leaves, batch, SingleProcess())
    assert all(g.isfinite().all() for g in torch.autograd.grad(error, leaves))
    total = sum((term.weights * term.values).sum() for term in task.terms(leaves, batch).values.values())
    first = torch.autograd.grad(total, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert all(g.isfinite().all() for g in (*first, *second))


@pytest.mark.parametrize("m", [0, 2])
@pytest.mark.parametrize("error", ["edet", "edet50", "total"])
def test_a_minibatch_without_boxes_has_finite_loss_error_and_slope(m, error):
    batch = batch_of(2, 1)
    none = {"boxes": torch.zeros(2, m, 4), "labels": torch.full((2, m), -1), "crowd": torch.zeros(2, m).bool()}
    batch = batch._replace(targets={**none, "image": torch.arange(2)})
    outputs = student()(batch.inputs)
    found = task_of(error=error).error(outputs, batch, SingleProcess())
    assert found.isfinite() and (error == "total" or found == 0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, outputs, materialize_grads=True))
    assert len(task_of().terms(student()(batch.inputs), batch).rows.labels) == 0


def test_one_class_has_nothing_to_decide():
    batch = batch_of(2, 1)
    batch.targets["labels"].clamp_(max=0)
    outputs = tuple(raw[..., :6] for raw in student()(batch.inputs))
    assert Detection(("cell",), ANCHORS, STRIDES).terms(outputs, batch).rows is None


@pytest.mark.parametrize("outputs", [torch.zeros(2, 3), (torch.zeros(2, 2, 4, 4, 7), torch.zeros(2, 2, 2, 2, 7))])
def test_other_outputs_are_refused(outputs):
    with pytest.raises(UserError, match=r"must give predictions \[\[2, 2, 4, 4, 8\], .* take student\.name=yolo"):
        task_of().terms(outputs, batch_of(2, 1))


# -- the soft average precision


@pytest.mark.parametrize("thresholds", [[0.5], THRESHOLDS])
def test_the_soft_average_precision_is_that_of_its_equation(thresholds):
    g = torch.Generator().manual_seed(0)
    label, is_truth = torch.randint(3, (14,), generator=g), torch.rand(14, generator=g) < 0.6
    logit, overlap = torch.randn(14, generator=g), torch.rand(14, generator=g)
    by_class = []
    for k in range(3):
        own = [i for i in range(14) if label[i] == k]
        of_truths = [i for i in own if is_truth[i]]
        values = []
        for t in thresholds:
            hit = [1 / (1 + math.exp(-(u - t) / 0.05)) for u in overlap.tolist()]
            for i in of_truths:
                ahead = {j: 1 / (1 + math.exp(-(logit[j] - logit[i]).item() / 0.5)) for j in own if j != i}
                up = hit[i] + sum(h * hit[j] for j, h in ahead.items() if is_truth[j])
                values.append(hit[i] * up / (1 + sum(ahead.values())))
        if of_truths:
            by_class.append(sum(values) / len(values))
    table = torch.stack((label.double(), is_truth.double(), logit.double(), (overlap * is_truth).double()), dim=1)
    assert soft_error(table, thresholds).item() == pytest.approx(1 - sum(by_class) / len(by_class), abs=1e-6)


def test_the_score_of_a_box_is_the_product_of_two_probabilities():
    there, label = torch.linspace(-9, 9, 7).double(), torch.linspace(-5, 8, 7).double().flip(0)
    torch.testing.assert_close(score_logit(there, label).sigmoid(), there.sigmoid() * label.sigmoid())
    extreme = torch.tensor([-2000.0, 2000.0], requires_grad=True)
    found = score_logit(extreme, extreme)
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), extreme)[0].isfinite().all()


def test_doubles_of_a_surer_box_of_the_same_class_do_not_survive():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 30, 30]]])
    answers = torch.tensor([[[5.0, 5, -20], [4, 4, -20], [4, -20, 4], [-20, 5, 5]]])
    found = survivors(boxes, answers)
    assert (found.cell.tolist(), found.label.tolist()) == ([0, 2], [0, 1])


def test_each_truth_is_judged_once_by_its_box_or_by_its_cell():
    """Truth 0 has a box, truth 1 one that overlaps too little to match, truth 2 one of another class alone, which is
    wrong; a box in a crowd is left out."""
    predicted = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 4], [0, 20, 9, 29], [40, 40, 50, 50], [1, 20, 10, 30]]])
    answers = torch.full((1, 5, 3), -9.0)
    for cell, label, logit in ((0, 0, 5.0), (1, 0, 4.0), (3, 1, 3.0), (4, 0, 2.0)):
        answers[0, cell, 0], answers[0, cell, 1 + label] = 9, logit
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30], [35, 35, 60, 60]]])
    labels, crowd = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[False, False, False, True]])
    rows = judged(predicted, answers, boxes, labels, crowd, torch.tensor([[0, 1, 2, 3]]))
    assert rows[:, 0].tolist() == [0, 0, 0, 1] and rows[:, 1].tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(rows[:, 3], torch.tensor([1, 0.4, 0, 0.81]))
    expected = [answers[0, 0, :2], answers[0, 1, :2], answers[0, 4, :2], answers[0, 2, [0, 2]]]
    for logit, (there, own) in zip(rows[:, 2], expected, strict=True):
        torch.testing.assert_close(logit, score_logit(there, own))


def test_better_boxes_have_a_smaller_error():
    batch, task, truth = apart(), task_of(error="edet"), sharp(apart())
    noise = [torch.randn(raw.shape, generator=torch.Generator().manual_seed(4)).double() for raw in truth]
    errors = []
    for size in (0, 0.1, 0.3, 1.0):
        moved = [raw.clone() for raw in truth]
        for raw, own in zip(moved, noise, strict=True):
            raw[..., :4] += size * own[..., :4]
        errors.append(task.error(tuple(moved), batch, SingleProcess()).item())
    assert errors == sorted(errors) and errors[0] < 0.2 < errors[-1]


# -- the metric


def test_a_perfect_student_has_an_average_precision_of_one_and_an_idle_one_of_nothing():
    batch, task = apart(), task_of()
    assert task.summarise(task.score(sharp(batch), batch))["ap"] == pytest.approx(1)
    idle = tuple(torch.full_like(raw, -20) for raw in sharp(batch))
    assert task.summarise(task.score(idle, batch))["ap"] == 0


def test_workers_find_the_same_metrics_as_one(run_on_two_workers):
    task, batches = task_of(), [batch_of(5, 7), batch_of(4, 8)]
    batches[1].targets["image"] = torch.arange(5, 9)
    replicas = [student(), student()]

    def found(module, own, group):
        flat = FlatModule(module)
        state = StudentState(flat.initial(), torch.zeros(flat.num_parameters).double(), flat.initial_buffers())
        return evaluate(flat, state, task, own, group)

    def work(group):
        rows = slice(0, 2) if group.rank == 0 else slice(2, None)
        return found(replicas[group.rank], [part_of(batch, rows) for batch in batches], group)

    first, second = run_on_two_workers(work)
    assert first == second == found(student(), batches, SingleProcess())
    assert first["ap"] > 0 and "ap_small" in first


def test_it_shows_the_boxes_that_are_scored_and_precision_over_recall():
    task, batch = task_of(), batch_of(3, seed=4)
    outputs = sharp(batch)
    assert isinstance(task, ShowsAnswers)
    truths, answers = task.truths(batch), task.answers(outputs, batch)
    assert [len(truth.labels) for truth in truths] == (batch.targets["labels"] >= 0).sum(dim=1).tolist()
    assert not len(truths[0].labels) and truths[1].crowd.tolist()[0] == (batch.targets["labels"][1, 0] >= 0).item()
    rows = task.score(outputs, batch)
    for number, said in enumerate(answers):
        own = rows[(rows[:, 0] == number) & (rows[:, 7] == 0)].numpy()
        np.testing.assert_allclose(own[:, 2], said.scores)
        np.testing.assert_allclose(own[:, 3:7], said.corners)
    (curves,) = task.charts(rows)
    assert list(curves.lines) == ["AP50: overlap of 0.5 or more", "AP75: overlap of 0.75 or more"]
    assert task.charts(rows[rows[:, 7] == 0]) == []
