"""Pixels as rows: what counts, what is chosen, and scores that add up over workers."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from l2t_ray.core.student import own_loss
from l2t_ray.interfaces import Batch, Task
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.pixel_terms import touching
from l2t_ray.tasks.segmentation import Segmentation
from l2t_ray.tasks.shares import share_of
from l2t_ray.tasks.shown import ShowsAnswers

NAMES = ("sky", "road", "car")


def batch_of(mask, chosen=None):
    n = len(mask)
    targets = mask if chosen is None else {"mask": mask, "chosen": chosen}
    return Batch(torch.zeros(n, 1), targets, torch.full((n,), 0.1), torch.arange(n))


def logits(n=2, seed=0):
    return torch.randn(n, 3, 2, 3, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[[0, 1, 2], [255, 1, 1]], [[2, 2, 2], [2, 2, 255]]])


def test_all_pixels_that_count_are_rows_in_order():
    task, z = Segmentation(NAMES), logits()
    assert isinstance(task, Task) and task.num_rows(MASK).tolist() == [5, 5]
    rows = task.terms(z, batch_of(MASK)).rows
    assert rows.labels.tolist() == [0, 1, 2, 1, 1, 2, 2, 2, 2, 2] and rows.owner.tolist() == [0] * 5 + [1] * 5
    torch.testing.assert_close(rows.logits[3], z[0, :, 1, 1])
    torch.testing.assert_close(rows.logits[7], z[1, :, 0, 2])


def test_chosen_pixels_alone_are_rows():
    chosen = torch.tensor([[4, 0, 3], [2, -1, 1]])
    task, z = Segmentation(NAMES), logits()
    batch = batch_of(MASK, chosen)
    assert task.num_rows(batch.targets).tolist() == [2, 2]
    rows = task.terms(z, batch).rows
    assert rows.labels.tolist() == [1, 0, 2, 2]  # pixel 3 is to be ignored, and -1 is none
    torch.testing.assert_close(rows.logits, torch.stack([z[0, :, 1, 1], z[0, :, 0, 0], z[1, :, 0, 2], z[1, :, 0, 1]]))


def test_an_auxiliary_head_counts_beside_the_rows():
    task, z, aux = Segmentation(NAMES, aux_weight=0.4), logits(), logits(seed=1)
    terms = task.terms((z, aux), batch_of(MASK))
    expected = 0.4 * 0.1 * F.cross_entropy(aux, MASK, ignore_index=255, reduction="sum")
    torch.testing.assert_close(terms.rest, expected)
    assert task.terms(z, batch_of(MASK)).rest is None


def test_terms_are_cross_entropy_by_class_and_overlap_by_image():
    task, z = Segmentation(NAMES), logits()
    terms = task.terms(z, batch_of(MASK))
    assert terms.values.keys() == task.kinds.keys() and task.kinds["cross_entropy"] == NAMES
    ce, jaccard = terms.values["cross_entropy"], terms.values["jaccard"]
    torch.testing.assert_close(ce.values, F.cross_entropy(terms.rows.logits, terms.rows.labels, reduction="none"))
    assert ce.kinds.tolist() == terms.rows.labels.tolist()
    p = z[1].softmax(0)[2].flatten()[:5]  # the second image has one class
    torch.testing.assert_close(jaccard.values[1], 1 - p.sum() / 5)
    torch.testing.assert_close(jaccard.weights, torch.tensor([0.5, 0.5]))


def test_pixels_touch_another_class_beside_them_and_nothing_that_does_not_count():
    mask = torch.tensor([[[0, 0, 1, 1], [0, 0, 255, 1], [0, 0, 255, 2]]])
    expected = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert touching(mask, 255)[0].int().tolist() == expected
    assert not touching(torch.full((2, 1, 1), 3), 255).any()


def test_other_terms_can_be_chosen_and_the_tasks_own_loss_is_their_sum():
    task, z = Segmentation(NAMES, loss_terms=("boundary", "dice", "focal")), logits()
    terms = task.terms(z, batch_of(MASK))
    assert list(terms.values) == list(task.kinds) == ["boundary", "dice", "focal"]
    rows = terms.rows
    ce = F.cross_entropy(rows.logits, rows.labels, reduction="none")
    p = rows.logits.softmax(1)[torch.arange(len(rows.labels)), rows.labels]
    torch.testing.assert_close(terms.values["focal"].values, (1 - p) ** 2 * ce)
    near = torch.tensor([1, 1, 1, 0, 1] + [0] * 5).bool()  # in the second image there is one class alone
    torch.testing.assert_close(terms.values["boundary"].values, ce[near])
    assert terms.values["boundary"].owner.tolist() == [0] * 4
    pixels = z[1].softmax(0)[2].flatten()[:5].sum()
    torch.testing.assert_close(terms.values["dice"].values[1], 1 - 2 * pixels / (pixels + 5))
    torch.testing.assert_close(own_loss(terms, task), sum((t.weights * t.values).sum() for t in terms.values.values()))


def test_an_overlap_of_the_minibatch_is_that_of_all_its_pixels_and_each_image_has_it():
    names, z = ("minibatch_jaccard", "minibatch_dice"), logits()
    terms = Segmentation(NAMES, loss_terms=names).terms(z, batch_of(MASK))
    rows = terms.rows
    p, t = rows.logits.softmax(1), F.one_hot(rows.labels, 3)
    hits, sums = (p * t).sum(0), p.sum(0) + t.sum(0)
    for name, ratio in zip(names, (hits / (sums - hits), 2 * hits / sums), strict=True):
        torch.testing.assert_close(terms.values[name].values, (1 - ratio.mean()).expand(2))
        torch.testing.assert_close(terms.values[name].weights, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sampled_pixels_give_loss_and_gradient_on_average_and_scatter_as_a_sample_does(count):
    """Over all choices of so many of the five pixels that count."""
    task, z, places = (
        Segmentation(NAMES, loss_terms=("cross_entropy",)),
        logits(1).double().requires_grad_(),
        (0, 1, 2, 4, 5),
    )

    def loss_and_slope(chosen):
        batch = batch_of(MASK[:1], torch.tensor([chosen]))._replace(weights=torch.tensor([1 / len(chosen)]).double())
        terms = task.terms(z, batch)
        loss = own_loss(terms, task)
        return loss.detach(), torch.autograd.grad(loss, z)[0], terms.values["cross_entropy"].values.detach()

    losses, slopes, _ = zip(*(loss_and_slope(chosen) for chosen in combinations(places, count)), strict=True)
    whole, slope, values = loss_and_slope(places)
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    torch.testing.assert_close(torch.stack(slopes).mean(dim=0), slope)
    expected = values.var() * (1 / count - 1 / 5)
    torch.testing.assert_close(torch.stack(losses).var(unbiased=False), expected)


def test_borders_are_found_where_pixels_are_chosen():
    chosen = torch.tensor([[4, 0, 3], [2, -1, 1]])  # 4 touches none, 0 does, 3 does not count
    boundary = Segmentation(NAMES, loss_terms=("boundary",)).terms(logits(), batch_of(MASK, chosen)).values["boundary"]
    ce = F.cross_entropy(logits().flatten(2), MASK.flatten(1), ignore_index=255, reduction="none")
    torch.testing.assert_close(boundary.values, ce[0, [0]])
    torch.testing.assert_close(boundary.weights, torch.tensor([0.1]))


def test_an_auxiliary_head_can_be_under_the_same_loss():
    z, aux = logits(), logits(seed=1)
    task, own = Segmentation(NAMES, auxiliary="same", aux_weight=0.3), Segmentation(NAMES)
    both, main, other = (
        task.terms((z, aux), batch_of(MASK)),
        own.terms(z, batch_of(MASK)),
        own.terms(aux, batch_of(MASK)),
    )
    assert both.rest is None and both.outputs is z
    torch.testing.assert_close(own_loss(both, task), own_loss(main, own) + 0.3 * own_loss(other, own))
    torch.testing.assert_close(both.rows.logits, torch.cat((main.rows.logits, other.rows.logits)))
    torch.testing.assert_close(both.rows.weights, torch.cat((main.rows.weights, 0.3 * other.rows.weights)))
    torch.testing.assert_close(own_loss(task.terms(z, batch_of(MASK)), task), own_loss(main, own))  # in evaluation


@pytest.mark.parametrize("error", ["cross_entropy", "soft_miou", "soft_dice"])
def test_errors_are_zero_for_a_perfect_student_and_the_same_on_two_workers(error, run_on_two_workers):
    task = Segmentation(NAMES, error=error)
    sure = 60.0 * F.one_hot(MASK.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert task.error(sure, batch_of(MASK), SingleProcess()).item() == pytest.approx(0, abs=1e-5)
    whole = logits().requires_grad_()
    alone = task.error(whole, batch_of(MASK), SingleProcess())
    (slope,) = torch.autograd.grad(alone, whole)

    def work(group):
        own = logits()[group.rank : group.rank + 1].requires_grad_()
        share = task.error(own, batch_of(MASK[group.rank : group.rank + 1]), group)
        return share.detach(), torch.autograd.grad(share, own)[0]

    (first, slope_first), (second, slope_second) = run_on_two_workers(work)
    torch.testing.assert_close(first + second, alone.detach())
    torch.testing.assert_close(torch.cat((slope_first, slope_second)), slope)


@pytest.mark.parametrize("error", ["cross_entropy", "soft_miou", "soft_dice"])
def test_where_no_pixel_counts_there_is_no_error(error):
    nothing = batch_of(torch.full_like(MASK, 255))
    z = logits().requires_grad_()
    found = Segmentation(NAMES, error=error).error(z, nothing, SingleProcess())
    assert found.item() == 0 and not torch.autograd.grad(found, z)[0].any()


def test_scores_come_from_one_confusion_matrix():
    task, z = Segmentation(NAMES), logits()
    totals = task.score(z[:1], batch_of(MASK[:1])) + task.score(z[1:], batch_of(MASK[1:]))
    metrics = task.summarise(totals)
    answers, counts = z.argmax(1), MASK != 255
    ious = []
    for k in range(3):
        is_class, is_answer = MASK.eq(k) & counts, answers.eq(k) & counts
        ious.append((is_class & is_answer).sum().item() / (is_class | is_answer).sum().item())
    assert metrics["miou"] == pytest.approx(sum(ious) / 3)
    assert [metrics[f"iou_{name}"] for name in NAMES] == pytest.approx(ious)
    assert metrics["accuracy"] == pytest.approx((answers == MASK)[counts].float().mean().item())
    assert metrics["error"] == pytest.approx(F.cross_entropy(z, MASK, ignore_index=255).item(), rel=1e-6)


def test_a_share_of_a_sum_is_the_function_itself_on_one_worker():
    sums = torch.tensor([2.0, 4.0], requires_grad=True)
    value = share_of(lambda s: s[0] / s[1], sums, SingleProcess())
    assert value.item() == 0.5 and torch.autograd.grad(value, sums)[0].tolist() == [0.25, -0.125]


def test_it_shows_the_class_of_each_pixel_that_counts_and_the_overlap_of_each_class():
    task, z = Segmentation(NAMES), logits()
    assert isinstance(task, ShowsAnswers)
    batch = batch_of(MASK, torch.tensor([[0], [0]]))
    truth, said = task.truths(batch)[0], task.answers((z, z), batch)[0]
    assert truth.classes.tolist() == MASK[0].tolist() and truth.ignore == said.ignore == 255
    assert said.classes[0].tolist() == z[0].argmax(dim=0)[0].tolist() and said.classes[1, 0] == 255
    totals = torch.tensor([2.0, 1, 0, 0, 3, 0, 0, 0, 0, 5])  # nobody says or is a car
    matrix, overlaps = task.charts(totals)
    assert matrix.counts.tolist() == [[2, 1, 0], [0, 3, 0], [0, 0, 0]]
    assert overlaps.values == pytest.approx({"sky": 2 / 3, "road": 3 / 4})
    assert overlaps.whole == ("mIoU", pytest.approx(17 / 24))
