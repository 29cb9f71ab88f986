"""Fixed losses for images with masks: the formulas, which pixels they read, and what clean images are for."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from replicas import run_alone, run_on_both

from l2t_ray.assembly.methods import build_arm
from l2t_ray.assembly.run import build_trainee
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.core.student import weighted_cross_entropy
from l2t_ray.interfaces import UserError
from l2t_ray.methods import mask_loss
from l2t_ray.methods.parts import Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate

NUMBERS = torch.arange(96)
LOGITS = (((7 * NUMBERS**2 + 3 * NUMBERS) % 23) / 5 - 2).double().reshape(2, 4, 3, 4)
PLACES = torch.arange(24)
MASK = torch.where(PLACES % 7 > 0, (5 * PLACES + PLACES // 3) % 3, 255).reshape(2, 3, 4)  # class 3 is not there
COUNTS = MASK != 255
ROWS, LABELS = LOGITS.permute(0, 2, 3, 1)[COUNTS], MASK[COUNTS]


def scenes(method, **sections):
    return validate(
        {
            "data": {
                "name": "digit_scenes",
                "options": {"num_train": 8, "num_validation": 4, "num_test": 2},
                "masks": {"crop": 16, "pixels": 20},
            },
            "student": {"name": "pspnet", "width": 8, "norm": "group"},
            "training": {
                "num_rounds": 2,
                "num_steps": 2,
                "batch_size": 3,
                "val_batch_size": 2,
                "learning_rate": 0.05,
            },
            "method": method,
            "controls": [],
            "ray": {"enabled": False},
        }
        | sections,
        source="a test",
    )


def parts_of(config):
    source = source_of(config)
    return Parts(build_trainee(config, source, SingleProcess()), source, config.training.num_rounds, config.seed)


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        # What segmentation-models-pytorch 0.6.0 gives for LOGITS and MASK, and the norm of its gradient.
        (mask_loss.dice_loss, 0.514693334887075, 0.0419378222435919),
        (mask_loss.jaccard_loss, 0.6104480975578277, 0.029513463991027482),
        (mask_loss.lovasz_loss, 0.73423654, 0.04907003),
        (lambda logits, labels: mask_loss.focal_loss(logits, labels).mean(), 1.0107035289260193, 0.2272395299327306),
    ],
    ids=["dice", "jaccard", "lovasz", "focal"],
)
def test_losses_are_those_that_people_use(loss, value, slope):
    rows = ROWS.clone().requires_grad_()
    found = loss(rows, LABELS)
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert torch.autograd.grad(found, rows)[0].norm().item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("form", mask_loss.OVERLAPS)
def test_an_overlap_is_lost_wholly_or_not_at_all(form):
    sure, absent = 200.0 * F.one_hot(LABELS, 4).double(), F.one_hot(torch.full_like(LABELS, 3), 4) * 200.0
    loss = mask_loss.OVERLAPS[form]
    assert loss(sure, LABELS).item() == pytest.approx(0, abs=1e-9)
    logits = absent.double().requires_grad_()
    wrong = loss(logits, LABELS)
    assert wrong.item() == pytest.approx(1 if form == "lovasz" else 3 / 4)  # three classes of four are there
    assert torch.autograd.grad(wrong, logits)[0].isfinite().all()


@pytest.mark.parametrize("form", mask_loss.OVERLAPS)
def test_where_no_pixel_counts_there_is_nothing_to_lose(form):
    logits = torch.zeros(0, 4, requires_grad=True)
    losses = mask_loss.of_each_row(mask_loss.OVERLAPS[form])(logits, torch.zeros(0, dtype=torch.int64))
    assert losses.shape == (0,) and torch.autograd.grad(losses.sum(), logits)[0].shape == (0, 4)


def test_class_weights_go_by_the_training_part_and_push_as_cross_entropy_does():
    parts = parts_of(scenes({"name": "mask_loss", "form": "class_weights_root"}))
    train = parts.source.dataset.train
    masks = torch.stack([torch.from_numpy(train.pairs[row][1]) for row in parts.source.split(0).train])
    assert len(masks) == 8
    counts = mask_loss.pixels_by_class(parts)
    assert torch.equal(counts, torch.bincount(masks.flatten().long(), minlength=11))
    inverse, root = mask_loss.class_weights(counts, 1.0), mask_loss.class_weights(counts, 0.5)
    shares = counts / counts.sum()
    for weights in (inverse, root):
        assert (shares * weights).sum().item() == pytest.approx(1)
    present = shares > 0
    torch.testing.assert_close((shares * inverse)[present], torch.full_like(shares[present], 1 / present.sum()))
    torch.testing.assert_close(inverse / inverse[0], (root / root[0]) ** 2)
    weighted = weighted_cross_entropy(root[:4])(ROWS, LABELS)
    torch.testing.assert_close(weighted, root[:4][LABELS] * F.cross_entropy(ROWS, LABELS, reduction="none"))


def test_a_class_without_a_pixel_weighs_as_the_rarest():
    weights = mask_loss.class_weights(torch.tensor([60, 30, 0, 10]), 1.0)
    assert weights.tolist() == pytest.approx([1 / 3 / 0.6, 1 / 3 / 0.3, 1 / 3 / 0.1, 1 / 3 / 0.1])


def test_all_pixels_of_the_crops_are_rows():
    parts = parts_of(scenes({"name": "mask_loss", "form": "focal"}))
    arm = build_arm(scenes({"name": "mask_loss", "form": "focal"}).method, parts, build_teacher)
    own, chosen = arm.data.round(1).train[0], parts.source.plain().round(1).train[0]
    assert torch.equal(own.inputs, chosen.inputs) and torch.equal(own.targets, chosen.targets["mask"])
    torch.testing.assert_close(own.weights, torch.full((3,), 1 / (3 * 16 * 16)))


@pytest.mark.parametrize("form", ["focal", "lovasz"])
def test_it_trains_and_is_called_after_its_loss(form):
    config = scenes({"name": "mask_loss", "form": form})
    end = run_alone(config.model_copy(update={"training": config.training.model_copy(update={"num_rounds": 8})}))
    assert list(end.finished) == [form] and {"test_miou", "test_accuracy"} <= end.rows[-1].keys()
    losses = [row["train_loss"] for row in end.rows]
    assert 0 < sum(losses[-3:]) / 3 < losses[0]


def test_cross_entropy_is_added_and_clean_images_are_trained_on():
    control = {"name": "mask_loss", "form": "jaccard", "with_cross_entropy": True}
    controls = [control | {"clean_images": use} for use in ("validate", "mixed", "fine_tuned")]
    end = run_alone(scenes("cross_entropy", controls=controls))
    jaccard = "cross_entropy+jaccard"
    assert list(end.finished) == [jaccard, f"{jaccard}-mixed", f"{jaccard}-fine_tuned", "cross_entropy"]
    thetas = [end.finished[arm].theta for arm in end.finished]
    assert not any(torch.equal(a, b) for i, a in enumerate(thetas) for b in thetas[:i])
    alone = run_alone(scenes({"name": "mask_loss", "form": "jaccard"})).rows[0]["train_loss"]
    assert end.rows[0]["train_loss"] > alone + 1  # cross-entropy of eleven classes


def test_what_is_a_sum_over_pixels_is_the_same_on_two_workers(run_on_two_workers):
    config = scenes({"name": "mask_loss", "form": "class_weights_root"})
    whole = run_alone(config)
    for own in run_on_both(config, run_on_two_workers):
        torch.testing.assert_close(own.state.student.theta, whole.state.student.theta, rtol=1e-4, atol=1e-6)


def test_an_overlap_of_two_workers_is_that_of_their_slices_by_their_shares(run_on_two_workers):
    config = scenes({"name": "mask_loss", "form": "dice"})
    first, second = run_on_both(config, run_on_two_workers)
    assert torch.equal(first.state.student.theta, second.state.student.theta)
    loss = mask_loss.of_each_row(mask_loss.dice_loss)
    weights, cut = torch.full((len(LABELS),), 1 / len(LABELS)), 12
    slices = [(weights[part] * loss(ROWS[part], LABELS[part])).sum() for part in (slice(cut), slice(cut, None))]
    expected = [mask_loss.dice_loss(ROWS[:cut], LABELS[:cut]), mask_loss.dice_loss(ROWS[cut:], LABELS[cut:])]
    share = cut / len(LABELS)
    torch.testing.assert_close(sum(slices), share * expected[0] + (1 - share) * expected[1])


def test_images_without_masks_are_refused():
    config = scenes("mask_loss", data={"name": "digits"}, student="resnet8")
    with pytest.raises(UserError, match="is for images with masks, and the task here is classification; name another"):
        build_arm(config.method, parts_of(config), build_teacher)


def test_an_overlap_of_both_heads_together_is_refused():
    data = scenes("cross_entropy").data.model_dump()
    joined = {"data": data | {"masks": data["masks"] | {"auxiliary": "same"}}}
    for form in ("dice", "focal"):
        config = scenes({"name": "mask_loss", "form": form}, **joined)
        refusal = pytest.raises(UserError, match=r"data\.masks\.auxiliary is 'same', .* dice is of all rows together")
        with refusal if form == "dice" else nullcontext():
            build_arm(config.method, parts_of(config), build_teacher)


def test_an_overlap_of_some_of_the_images_is_refused():
    with pytest.raises(UserError, match=r"clean_images 'trusted' .* dice is a loss of the minibatch as a whole"):
        scenes({"name": "mask_loss", "form": "dice", "clean_images": "trusted"})
    assert scenes({"name": "mask_loss", "form": "focal", "clean_images": "trusted"}).method.arm == "focal-trusted"
