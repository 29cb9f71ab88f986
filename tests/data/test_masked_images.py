"""Crops of images with masks: what moves, what is chosen, and who is served what."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.mask_transforms import chosen_pixels, window_at, windowed
from l2t_ray.data.masked_images import MaskedImages
from l2t_ray.data.masked_sets import MaskedSet
from l2t_ray.data.row_shares import RowShares
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.segmentation import Segmentation

IGNORE = 255
CPU = torch.device("cpu")


def painted(height, width, seed=0):
    """A mask of random blocks, and the image painted from it: 20 grey levels a class."""
    classes = np.random.default_rng(seed).integers(0, 8, (height // 4 + 1, width // 4 + 1), dtype=np.uint8)
    mask = np.kron(classes, np.ones((4, 4), dtype=np.uint8))[:height, :width]
    return (20 * mask)[None].copy(), mask


SET = MaskedSet.of([painted(20 + i, 30 - i, seed=i) for i in range(12)], "abcdefgh")


def images(which=SET, **changes):
    return MaskedImages(
        which, **{"mean": (0.5,), "std": (0.25,), "crop": 16, "scale": (0.5, 2.0), "pixels": 40} | changes
    )


def loader(rank=0, world_size=1, seed=3, which=None, **changes):
    rows = np.arange(12)
    policy = Policy(lambda epoch: Split(rows[:8], rows[8:]), lasts=None)
    sampler = RoundSampler(policy, seed=seed, num_steps=2, train_batch=5, val_batch=3)
    part = images(**changes) if which is None else which
    return RoundLoader(
        *(part, part, part),
        sampler,
        seed=seed,
        num_classes=8,
        rank=rank,
        world_size=world_size,
        augment_validation=True,
        test_batch=2,
    )


def test_a_mask_painted_from_the_image_equals_it_after_any_crop_and_flip():
    generator = np.random.default_rng(1)
    part = images(scale=(1.0, 1.0), crop=24)  # wider than some images are high
    rows = generator.integers(0, 12, 200)
    inputs, targets = part.batch(rows, part.draws(generator, 200), CPU)
    grey = ((inputs[:, 0] * 0.25 + 0.5) * 255).round()
    counts = targets["mask"] != IGNORE
    assert torch.equal(grey[counts], 20.0 * targets["mask"][counts])
    assert (grey[~counts] == 128).all() and 0 < (~counts).sum() < counts.sum()


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.7, 3.0])
def test_masks_stay_under_their_images_when_both_change_size(scale):
    """On a ramp, the mask of its columns is off by rounding alone, about half a pixel of either size."""
    columns = np.arange(60, dtype=np.uint8)
    image, mask = np.broadcast_to(columns * 4, (1, 60, 60)).copy(), np.broadcast_to(columns, (60, 60)).copy()
    window = window_at(60, 60, crop=20, scale=scale, place=(0.3, 0.6), is_flipped=True)
    pixels, classes = windowed(image, mask, window, (20, 20), fill=[0.0], ignore=IGNORE)
    inside = slice(1, -1)  # averages are one-sided at the edge of what is cut
    off = (pixels[0].double() / 4 - classes)[:, inside]
    assert classes.shape == (20, 20) and off.abs().max() <= 0.51 * max(1, 1 / scale) + 0.13
    assert abs(off.mean()) < 0.26 * max(1, 1 / scale)  # to neither side, but where one of two nearest is taken


def test_windows_reach_every_place_and_beyond_small_images():
    tops = {
        window_at(10, 30, crop=8, scale=1.0, place=(float(share), 0.0), is_flipped=False).top
        for share in np.linspace(0, 0.999, 50)
    }
    assert tops == {0, 1, 2}
    small = {
        window_at(6, 30, crop=8, scale=1.0, place=(float(share), 0.0), is_flipped=False).top
        for share in (0.0, 0.5, 0.99)
    }
    assert small == {0, -1, -2}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_share_the_global_batch_to_the_bit(world_size):
    whole, workers = loader(), [loader(rank, world_size) for rank in range(world_size)]
    for index in (0, 5):
        shares = [worker.round(index) for worker in workers]
        for step, batch in enumerate([*whole.round(index).train, whole.round(index).val]):
            mine = [[*share.train, share.val][step] for share in shares]
            assert torch.cat([share.inputs for share in mine]).equal(batch.inputs)
            for name in ("mask", "chosen"):
                assert torch.cat([share.targets[name] for share in mine]).equal(batch.targets[name])
    expected = {
        int(row): mask for batch in whole.test() for row, mask in zip(batch.indices, batch.targets, strict=True)
    }
    for worker in workers:
        for batch in worker.test():
            assert all(mask.equal(expected[int(row)]) for row, mask in zip(batch.indices, batch.targets, strict=True))


def test_any_round_is_served_by_its_number_alone():
    first, again = loader(), loader()
    first.round(0)
    a, b = first.round(7), again.round(7)
    for x, y in zip(a.train, b.train, strict=True):
        assert x.inputs.equal(y.inputs) and x.targets["chosen"].equal(y.targets["chosen"])
    assert not a.train[0].inputs.equal(a.train[1].inputs) and not a.train[0].inputs.equal(
        loader(seed=4).round(7).train[0].inputs
    )


def test_chosen_pixels_count_and_are_others_for_each_example():
    part, generator = images(crop=32), np.random.default_rng(0)
    _, targets = part.batch(np.zeros(6, dtype=np.int64), part.draws(generator, 6), CPU)
    for mask, chosen in zip(targets["mask"], targets["chosen"], strict=True):
        assert (mask.flatten()[chosen] != IGNORE).all() and len(chosen.unique()) == 40
    assert len({tuple(chosen.tolist()) for chosen in targets["chosen"]}) == 6


def test_too_few_pixels_that_count_are_all_chosen():
    mask = torch.full((4, 4), IGNORE)
    mask[1, 2] = mask[3, 3] = 0
    assert sorted(chosen_pixels(mask, 5, ignore=IGNORE, seed=0).tolist()) == [-1, -1, -1, 6, 15]
    assert set(chosen_pixels(torch.full((4, 4), IGNORE), 3, ignore=IGNORE, seed=0).tolist()) == {-1}


def test_pixels_are_chosen_with_equal_chances():
    mask = torch.zeros(5, 5, dtype=torch.int64)
    mask[0] = IGNORE
    counts = torch.zeros(25)
    for seed in range(2000):
        counts[chosen_pixels(mask, 4, ignore=IGNORE, seed=seed)] += 1
    assert (counts[:5] == 0).all() and (counts[5:] - 400).abs().max() < 5 * 400**0.5


def test_whole_images_are_filled_up_to_one_frame():
    inputs, mask = images().batch(np.array([3, 11]), (), CPU)
    assert inputs.shape == (2, 1, 31, 30) and mask.shape == (2, 31, 30)
    image, classes = SET.pairs[3]
    torch.testing.assert_close((inputs[0, 0, :23, :27] * 0.25 + 0.5) * 255, torch.from_numpy(image[0]).float())
    assert mask[0, :23, :27].equal(torch.from_numpy(classes).long())
    assert (mask[0, 23:] == IGNORE).all() and (mask[0, :, 27:] == IGNORE).all()


def test_a_crop_without_a_pixel_that_counts_weighs_nothing_and_is_told_once(caplog):
    image, mask = painted(16, 16)
    empty = MaskedSet.of([(image, np.full_like(mask, IGNORE))] * 12, "abcdefgh")
    data = RowShares(loader(which=images(empty, scale=(1.0, 1.0))), Segmentation("abcdefgh"), SingleProcess())
    with caplog.at_level(logging.WARNING):
        train = data.round(0).train
    assert [batch.weights.sum().item() for batch in train] == [0, 0]
    (record,) = caplog.records
    assert re.fullmatch(
        r"a crop of image \d+ has only pixels that are ignored: it teaches nothing.*", record.getMessage()
    )


def test_all_pixels_are_trained_on_where_none_are_chosen():
    part = images(pixels=None)
    _, targets = part.batch(np.arange(2), part.draws(np.random.default_rng(0), 2), CPU)
    assert targets.shape == (2, 16, 16) and targets.dtype is torch.int64


@pytest.mark.parametrize("ignore, dtype", [(-100, np.uint8), (1000, np.int16), (-1, np.uint16)])
def test_what_does_not_count_may_have_any_number(ignore, dtype):
    image, mask = painted(10, 12)
    part = images(MaskedSet.of([(image, mask.astype(dtype))], "abcdefgh", ignore=ignore), scale=(1.7, 1.8), crop=24)
    _, targets = part.batch(np.zeros(4, dtype=np.int64), part.draws(np.random.default_rng(0), 4), CPU)
    assert set(targets["mask"].unique().tolist()) == {ignore, *np.unique(mask).tolist()}
    assert (targets["mask"].flatten(1).gather(1, targets["chosen"]) != ignore).all()


def test_more_pixels_than_a_crop_has_are_refused():
    with pytest.raises(UserError, match=r"data\.masks\.pixels=257 is more than the 256 pixels"):
        images(pixels=257)


def test_shrunk_images_are_averaged_and_masks_are_not():
    stripes = np.zeros((1, 40, 64), dtype=np.uint8)
    stripes[:, :, 1::2] = 200
    mask, other = painted(40, 64, seed=5)[1], painted(36, 50)
    small = MaskedSet.of([(stripes, mask), other], "abcdefgh").shrunk(4)
    assert small.sizes.tolist() == [[10, 16], [9, 12]] and isinstance(small.pairs, list)
    assert [pixels.shape for pixels, _ in small.pairs] == [(1, 10, 16), (1, 9, 12)]
    pixels, classes = small.pairs[0]
    assert np.abs(pixels.astype(int) - 100).max() < 15
    np.testing.assert_array_equal(classes, mask[2::4, 2::4])  # its blocks are 4 x 4


def test_shrunk_sets_too_large_for_memory_are_read_when_they_are_asked_for(monkeypatch):
    whole = MaskedSet.of([painted(40, 64, seed=seed) for seed in range(3)], "abcdefgh")
    kept = whole.shrunk(2)
    monkeypatch.setattr("l2t_ray.data.masked_sets.IN_MEMORY", 0)
    asked = whole.shrunk(2)
    assert not isinstance(asked.pairs, list) and len(asked.pairs) == 3
    for ours, theirs in zip(asked.pairs[1:], kept.pairs[1:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_the_digest_tells_how_far_images_of_files_were_shrunk():
    of_files = replace(MaskedSet.of([painted(40, 64)], "abcdefgh"), content="files")
    assert len({of_files.digest(), of_files.shrunk(2).digest(), of_files.shrunk(4).digest()}) == 3


def test_images_of_which_too_little_is_left_are_refused():
    with pytest.raises(UserError, match=r"data\.masks\.shrink=3 leaves 6x10 pixels of image 11, which has 19x31"):
        SET.shrunk(3)


def test_crops_that_are_not_mirrored_are_those_that_are_but_for_that():
    rows, generator = np.arange(12), np.random.default_rng
    both = [images(augment=augment).draws(generator(0), 12) for augment in ("crop", "crop_flip")]
    for plain, mirrored in zip(*(draws[:2] + draws[3:] for draws in both), strict=True):
        np.testing.assert_array_equal(plain, mirrored)
    assert not both[0][2].any() and 0 < both[1][2].sum() < 12
    (inputs, _), (others, _) = (images().batch(rows, draws, CPU) for draws in both)
    flipped = torch.from_numpy(both[1][2])
    assert torch.equal(inputs[~flipped], others[~flipped]) and torch.equal(inputs[flipped], others[flipped].flip(3))
