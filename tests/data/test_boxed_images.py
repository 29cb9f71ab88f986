"""Letterboxed images with boxes: boxes move as their images do, shapes stay, workers share."""

import numpy as np
import pytest
import torch

from l2t_ray.data.box_transforms import letterbox, moved_boxes, placed
from l2t_ray.data.boxed_images import NO_BOX, BoxedImages
from l2t_ray.data.boxed_sets import BoxedSet, Boxes, clipped
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split

CPU = torch.device("cpu")
FRAME = (64, 96)


def painted(height, width, seed):
    """Black, with a white rectangle, and its box."""
    draw = np.random.default_rng(seed)
    top, left = draw.integers(0, (height // 2, width // 2))
    bottom, right = top + draw.integers(8, height // 2), left + draw.integers(8, width // 2)
    image = np.zeros((3, height, width), dtype=np.uint8)
    image[:, top:bottom, left:right] = 255
    return image, Boxes.of([[left, top, right, bottom]], [seed % 3])


PAIRS = [painted(50 + 3 * i, 90 - 4 * i, i) for i in range(12)]
SET = BoxedSet.of([image for image, _ in PAIRS], [boxes for _, boxes in PAIRS], "abc")


def images(which=SET, **changes):
    return BoxedImages(which, **{"mean": (0.0,) * 3, "std": (1.0,) * 3, "frame": FRAME, "scale": (0.5, 2.0)} | changes)


def loader(rank=0, world_size=1):
    rows, part = np.arange(12), images()
    policy = Policy(lambda epoch: Split(rows[:8], rows[8:]), lasts=None)
    sampler = RoundSampler(policy, seed=3, num_steps=2, train_batch=5, val_batch=3)
    return RoundLoader(
        *(part, part, part), sampler, seed=3, num_classes=3, rank=rank, world_size=world_size, test_batch=2
    )


@pytest.mark.parametrize("augment", ["crop_flip", "crop", "flip", "none"])
def test_a_box_painted_white_is_where_its_box_says_after_any_transform(augment):
    generator = np.random.default_rng(1)
    part, rows = images(augment=augment), generator.integers(0, 12, 150)
    inputs, targets = part.batch(rows, part.draws(generator, 150), CPU)
    assert inputs.shape == (150, 3, *FRAME) and inputs.dtype is torch.float32
    num_seen = 0
    for pixels, boxes, labels, row in zip(inputs, targets["boxes"], targets["labels"], rows.tolist(), strict=True):
        white = pixels[0] > 0.5
        if labels[0] == NO_BOX:
            assert white.sum() <= 2 * max(FRAME)  # less than a pixel of it may be in sight
            continue
        num_seen += 1
        assert labels[0] == row % 3
        y, x = white.nonzero(as_tuple=True)
        painted_box = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).float()
        assert (boxes[0] - painted_box).abs().max() <= 1.01
    assert num_seen > 100


def test_letterboxed_images_keep_their_proportions_and_lie_in_the_middle():
    image = np.full((3, 30, 60), 255, dtype=np.uint8)
    where = letterbox(30, 60, (64, 64))
    shown = placed(image, where, fill=[7.0, 8.0, 9.0])
    assert (shown[:, 16:48] == 255).all() and shown[:, 0, 0].tolist() == shown[:, 63, 9].tolist() == [7, 8, 9]
    np.testing.assert_allclose(where.moved(np.array([[0.0, 0, 60, 30]])), [[0, 16, 64, 48]])


@pytest.mark.parametrize("is_flipped", [False, True])
def test_boxes_come_back_to_the_stored_image(is_flipped):
    corners = np.array([[3.0, 4, 20, 25], [0, 0, 47, 33]])
    where = letterbox(33, 47, FRAME, scale=1.7, place=(0.2, 0.9), is_flipped=is_flipped)
    np.testing.assert_allclose(where.back(where.moved(corners)), corners, atol=1e-12)


def test_flips_mirror_boxes_and_cut_ones_become_crowds():
    boxes = Boxes.of([[0, 0, 10, 10], [28, 0, 68, 10], [70, 0, 80, 10]], [0, 1, 2])
    where = letterbox(32, 128, (32, 32), scale=4.0, place=(0.0, 0.0), is_flipped=True)
    seen = moved_boxes(boxes, where)
    np.testing.assert_allclose(seen.corners, [[22, 0, 32, 10], [0, 0, 4, 10]])
    assert seen.labels.tolist() == [0, 1] and seen.crowd.tolist() == [False, True]


def test_shapes_are_the_same_whatever_images_have_and_places_without_a_box_are_marked():
    boxes = [
        Boxes.of([], []),
        Boxes.of([[0, 0, 5, 5], [1, 1, 9, 9]], [1, 2], [False, True]),
        Boxes.of([[2, 2, 4, 4]], [0]),
    ]
    some = BoxedSet.of([np.zeros((3, 10, 10), dtype=np.uint8)] * 3, boxes, "abc")
    _, targets = images(some, frame=(32, 32)).batch(np.array([1, 0]), (), CPU)
    assert targets["boxes"].shape == (2, 2, 4) and targets["image"].tolist() == [1, 0]
    assert targets["labels"].tolist() == [[1, 2], [-1, -1]] and targets["crowd"].tolist() == [
        [False, True],
        [False] * 2,
    ]
    torch.testing.assert_close(targets["boxes"][0, 0], torch.tensor([0.0, 0, 16, 16]))
    empty = BoxedSet.of(some.images[:1], boxes[:1], "abc")
    assert images(empty, frame=(32, 32)).batch(np.array([0]), (), CPU)[1]["boxes"].shape == (1, 1, 4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_the_global_batch_to_the_bit(world_size):
    whole, workers = loader(), [loader(rank, world_size) for rank in range(world_size)]
    for index in (0, 5):
        shares = [worker.round(index) for worker in workers]
        for step, batch in enumerate([*whole.round(index).train, whole.round(index).val]):
            mine = [[*share.train, share.val][step] for share in shares]
            assert torch.cat([share.inputs for share in mine]).equal(batch.inputs)
            assert torch.cat([share.weights for share in mine]).equal(batch.weights)
            for name in ("boxes", "labels", "crowd", "image"):
                assert torch.cat([share.targets[name] for share in mine]).equal(batch.targets[name])


def test_any_round_is_served_by_its_number_alone():
    first, again = loader(), loader()
    first.round(0)
    a, b = first.round(7), again.round(7)
    assert a.train[0].inputs.equal(b.train[0].inputs) and a.train[0].targets["boxes"].equal(b.train[0].targets["boxes"])
    assert not a.train[0].inputs.equal(a.train[1].inputs)


def test_boxes_are_cut_at_the_edges_of_their_image():
    result = clipped(Boxes.of([[-1, 2, 4, 5], [3, 3, 3, 9], [1, 1, 2, 2], [11, 0, 12, 5]], [0, 1, 2, 0]), 8, 10)
    assert result.boxes.corners.tolist() == [[0, 2, 4, 5], [1, 1, 2, 2]] and result.boxes.labels.tolist() == [0, 2]
    assert (result.num_cut, result.num_empty) == (1, 2)
