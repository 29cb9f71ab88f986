"""Curves inside a soft metric: what phi = 0 is, what no phi changes, and how it is called."""

import pytest
import torch
import torch.nn.functional as F

from l2t_ray.core.loss.family import CalledFamily, Curve, KeptFamily
from l2t_ray.core.loss.soft_metric import SoftMetricLoss, SoftMetricSpec
from l2t_ray.core.student import own_loss
from l2t_ray.interfaces import Batch
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

NAMES, IGNORE = ("sky", "road", "car"), 255
MASK = torch.tensor([[[0, 1, 2], [255, 1, 1]], [[2, 2, 2], [2, 2, 255]]])


def make(pieces=3, sums="image"):
    return SoftMetricLoss(SoftMetricSpec(NAMES, (0.5, 0.3, 0.2), pieces, sums))


def some_phi(seed=0, loss=None):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn((loss or make()).spec.num_weights, generator=generator, dtype=torch.float64)


def logits(seed=0):
    return torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def terms(z):
    weights = torch.full((2,), 0.1, dtype=torch.float64)
    return Segmentation(NAMES).terms(z, Batch(torch.zeros(2, 1), MASK, weights, torch.arange(2)))


def jaccard(loss, phi, z):
    """The two images' soft Jaccard losses."""
    return loss.losses(phi, terms(z), None).values[10:]


def test_it_begins_as_cross_entropy_and_soft_jaccard():
    loss, given = make(), terms(logits())
    assert isinstance(loss, KeptFamily) and isinstance(loss, CalledFamily)
    assert len(loss.phi) == loss.spec.num_weights == sum(loss.groups.values()) == 3 + 1 + 2 * 3
    rows = loss.losses(loss.phi.double(), given, None)
    torch.testing.assert_close((rows.weights * rows.values).sum(), own_loss(given, Segmentation(NAMES)))
    torch.testing.assert_close(loss.fixed(given), rows.values)
    assert rows.owner.tolist() == [0] * 5 + [1] * 5 + [0, 1]


def test_it_can_begin_with_classes_weighed_by_how_rare_they_are():
    loss = SoftMetricLoss(SoftMetricSpec(NAMES, (0.64, 0.32, 0.04), 3, "image", 0.5))
    report = loss.report(loss.phi)
    assert report["weight_cross_entropy_car"] / report["weight_cross_entropy_sky"] == pytest.approx(4)
    assert report["weight_jaccard_all"] == pytest.approx(1) and report["slope_and_0"] == pytest.approx(1)
    torch.testing.assert_close(loss.fixed(terms(logits())), make().fixed(terms(logits())))


@pytest.mark.parametrize("seed", range(3))
def test_hard_answers_have_the_metric_itself_whatever_phi(seed):
    loss, answers = make(), torch.tensor([[[0, 1, 1], [0, 0, 1]], [[2, 2, 0], [2, 1, 0]]])
    hard = 2000.0 * F.one_hot(answers, 3).permute(0, 3, 1, 2).double()
    weight = loss.report(some_phi(seed))["weight_jaccard_all"]
    # sky 1 of 2, road 2 of 4, car none of 1; in the second image 3 of 5 are cars
    expected = torch.tensor([1 - (1 / 2 + 2 / 4 + 0) / 3, 1 - 3 / 5], dtype=torch.float64)
    torch.testing.assert_close(jaccard(loss, some_phi(seed), hard) / weight, expected)


def test_a_curve_rises_from_0_to_1_by_its_slopes():
    loss = make(pieces=2)
    phi = torch.zeros(8, dtype=torch.float64)
    phi[4:6] = torch.tensor([3.0, 1.0]).log() / 10  # slopes 1.5 and 0.5 in the intersection, and 1 in the union
    assert loss.slopes(phi)["and"].tolist() == pytest.approx([1.5, 0.5]) and loss.slopes(phi)["or"].tolist() == [1, 1]
    p = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64)
    z = p.log().reshape(1, 3, 1, 1).expand(2, 3, 2, 3)
    first = (1.5 * 0.2 / (1 + 4 * 0.2) + 3 * (0.75 + 0.5 * 0.2) / (3 + 2 * 0.7) + 1.5 * 0.1 / (1 + 4 * 0.1)) / 3
    torch.testing.assert_close(jaccard(loss, phi, z), torch.tensor([1 - first, 1 - 1.5 * 0.1], dtype=torch.float64))
    (curve, _) = (picture for picture in loss.pictures(phi) if isinstance(picture, Curve))
    assert (curve.x, curve.y) == ([0, 0.5, 1], pytest.approx([0, 0.75, 1]))


def test_a_surer_right_pixel_never_costs_more():
    loss, z = make(), logits()
    values = [
        jaccard(loss, 3 * some_phi(), z.index_put((torch.tensor(0),) * 4, torch.tensor(s).double()))
        for s in range(-9, 9)
    ]
    assert (torch.stack(values)[:, 0].diff() < 0).all()


def test_sums_over_a_minibatch_are_those_of_one_large_image():
    phi, one = some_phi(), make(sums="minibatch")
    large = logits().permute(1, 0, 2, 3).reshape(1, 3, 4, 3)
    rows = one.losses(phi, terms(logits()), None)
    assert rows.values[10] == rows.values[11] != jaccard(make(), phi, logits())[0]
    torch.testing.assert_close(one.loss(phi, logits(), MASK), make().loss(phi, large, MASK.reshape(1, 4, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_push_of_classes_and_metric_is_fixed(seed):
    report = make().report(some_phi(seed))
    shares = {"sky": 0.5, "road": 0.3, "car": 0.2}
    classes = sum(share * report[f"weight_cross_entropy_{name}"] for name, share in shares.items())
    assert classes + report["weight_jaccard_all"] == pytest.approx(2)
    assert sum(report[f"slope_or_{piece}"] for piece in range(3)) == pytest.approx(3)


def test_a_student_that_answers_all_classes_alike_is_taught_where_two_pieces_of_a_curve_meet():
    z = torch.zeros(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for pieces in (1, 3):
        loss = make(pieces)
        (gradient,) = torch.autograd.grad(loss.loss(loss.phi.double(), z, MASK), z)
        gradients.append(gradient)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, msg=lambda text: f"a bend of a straight curve at p = 1/3: {text}")


def test_it_is_called_with_logits_and_masks_of_any_size():
    loss, phi = make(), some_phi()
    rows = loss.losses(phi, terms(logits()), None)
    torch.testing.assert_close(loss.loss(phi, logits(), MASK), (rows.weights * rows.values).sum())
    torch.testing.assert_close(
        loss.loss(phi, logits(), MASK.where(MASK != 255, 7), ignore_index=7), loss.loss(phi, logits(), MASK)
    )
    assert loss.loss(phi, logits()[:1, :, :1, :2], MASK[:1, :1, :2]).isfinite()
    z = logits().requires_grad_()
    nothing = loss.loss(phi, z, torch.full_like(MASK, 255))
    assert nothing == 0 and not torch.autograd.grad(nothing, z)[0].any()


def test_what_does_not_fit_is_refused():
    loss, phi = make(), some_phi()
    with pytest.raises(ValueError, match=r"logits must be \[n, 3, ...\] and labels \[n, ...\], got \[2, 2, 2, 3\]"):
        loss.loss(phi, logits()[:, :2], MASK)
    with pytest.raises(ValueError, match="labels must be below 3 or 255, which does not count, got 4"):
        loss.loss(phi, logits(), MASK + 4 * (MASK == 0))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Segmentation((*NAMES, "tree")), "is for 3 classes, and the segmentation task has 4"),
        (Segmentation(("sky", "car", "road")), "has 'road' for class 1, which is 'car' in the segmentation task"),
        (Segmentation(NAMES, auxiliary="same"), "data.masks.auxiliary is 'same', which makes rows of both heads"),
        (Classification(), "is for images with masks, and the task here is classification"),
    ],
)
def test_a_task_that_it_was_not_learned_for_is_refused(task, message):
    make().check(Segmentation(NAMES))
    with pytest.raises(ValueError, match=message):
        make().check(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("sky", "sky", "car")}, "class_names must be one name or more, each once"),
        ({"shares": (0.5, 0.5)}, "shares must be 3 positive numbers, got"),
        ({"shares": (0.5, 0.5, 0.0)}, "shares must be 3 positive numbers, got"),
        ({"balance": 1.5}, "balance must be 0 to 1, got 1.5"),
        ({"pieces": 0}, "pieces must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SoftMetricSpec(**{"class_names": NAMES, "shares": (0.5, 0.3, 0.2), "pieces": 3} | changes)
