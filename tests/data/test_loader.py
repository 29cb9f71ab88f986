import numpy as np
import pytest
import torch

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.labelled_images import LabelledImages
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import fixed, redivided
from l2t_ray.interfaces import UserError


def small_dataset() -> Dataset:
    generator = np.random.default_rng(0)

    def part(n: int) -> ImageSet:
        images = generator.integers(0, 256, (n, 2, 8, 8), dtype=np.uint8)
        names = tuple(f"class {label}" for label in range(3))
        return ImageSet(images, np.arange(n) % 3, np.arange(n), names)

    return Dataset("small", part(60), part(11), (0.4, 0.5), (0.2, 0.3))


DATASET = small_dataset()
NOISY = (DATASET.train.labels + 1) % 3  # every observed label is wrong


def make(policy=redivided, at_pass_end="wrap", train_batch=7, **changes):
    sampler = RoundSampler(
        policy(DATASET.train.labels, 24, seed=5),
        seed=5,
        num_steps=4,
        train_batch=train_batch,
        val_batch=8,
        at_pass_end=at_pass_end,
    )
    options = {"augment": "crop_flip", "padding": 4, "padding_mode": "zero"}
    options |= {name: changes.pop(name) for name in options if name in changes}

    def images(labels, part=DATASET.train):
        return LabelledImages(part.images, labels, mean=DATASET.mean, std=DATASET.std, **options)

    clean, observed = DATASET.train.labels, changes.pop("observed_labels", NOISY)
    judged = observed if changes.pop("validation_labels", "clean") == "observed" else clean
    sources = (images(observed), images(judged), images(DATASET.test.labels, DATASET.test))
    return RoundLoader(*sources, sampler, **{"seed": 5, "num_classes": 3, "test_batch": 3} | changes)


class SeesGenerators:
    """Images that note the state of each generator they are given."""

    extreme_rows = ()

    def __init__(self, images, seen):
        self.images, self.seen = images, seen

    def __len__(self):
        return len(self.images)

    def draws(self, generator, size):
        self.seen.append(generator.bit_generator.state["state"]["state"])
        return self.images.draws(generator, size)

    def batch(self, rows, draws, device):
        return self.images.batch(rows, draws, device)


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("at_pass_end", ["wrap", "lose_step"])
@pytest.mark.parametrize("augment_validation", [False, True])
def test_slices_of_the_workers_make_up_the_global_batch(world_size, at_pass_end, augment_validation):
    """Images, augmentation and weights included: the number of workers changes nothing."""
    settings = {"at_pass_end": at_pass_end, "train_batch": 8, "augment_validation": augment_validation}
    whole = make(**settings)
    workers = [make(rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    for index in [0, 1, 2, 3, 4]:
        expected, shares = whole.round(index), [worker.round(index) for worker in workers]
        assert {len(share.train) for share in shares} == {len(expected.train)}
        for step, batch in enumerate(expected.train):
            assert_same(map(torch.cat, zip(*(share.train[step] for share in shares), strict=True)), batch)
            assert max(len(s.train[step].weights) for s in shares) - min(len(s.train[step].weights) for s in shares) < 2
            torch.testing.assert_close(batch.weights.sum(), torch.tensor(1.0))
        assert_same(map(torch.cat, zip(*(share.val for share in shares), strict=True)), expected.val)
    for name, argument in (("validation", [1]), ("test", [])):
        parts = [list(getattr(worker, name)(*argument)) for worker in workers]
        shares = [batch for part in parts for batch in part]
        expected = list(getattr(whole, name)(*argument))
        for a, b in zip(zip(*shares, strict=True), zip(*expected, strict=True), strict=True):
            assert torch.equal(torch.cat(a), torch.cat(b))


def test_same_round_same_bytes():
    first = make()
    first.round(7)
    assert_same([x for batch in first.round(2).train for x in batch], [x for b in make().round(2).train for x in b])
    assert not torch.equal(make(seed=6).round(2).train[0].inputs, make().round(2).train[0].inputs)


def test_no_two_batches_share_their_draws():
    loader = make(augment_validation=True)
    names = []
    loader._train = loader._validation = SeesGenerators(loader._train, names)
    for index in range(5):
        loader.round(index)
    assert len(names) == len(set(names)) == 25


def test_clean_validation_is_untouched():
    loader, clean = make(), torch.from_numpy(DATASET.train.labels)
    for index in range(6):
        train, val = loader.round(index)
        assert torch.equal(val.targets, clean[val.indices])
        for batch in train:
            assert torch.equal(batch.targets, (clean[batch.indices] + 1) % 3)
    for batch in loader.validation(0):
        assert torch.equal(batch.targets, clean[batch.indices])
    noisy = make(validation_labels="observed").round(0).val
    assert torch.equal(noisy.targets, (clean[noisy.indices] + 1) % 3)


def test_pixels_are_those_of_the_rows():
    loader = make(augment="none")
    pixels = torch.from_numpy(DATASET.train.images)
    mean, std = torch.tensor(DATASET.mean).view(2, 1, 1), torch.tensor(DATASET.std).view(2, 1, 1)
    for batch in [*loader.round(3).train, loader.round(3).val, *loader.validation(0)]:
        torch.testing.assert_close(batch.inputs, (pixels[batch.indices] / 255 - mean) / std)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop_flip"])
def test_what_is_augmented(augment):
    plain, loader = make(augment="none").round(1), make(augment=augment).round(1)
    for batch, original in zip(loader.train, plain.train, strict=True):
        is_same = (batch.inputs == original.inputs).flatten(1).all(1)
        is_flipped = (batch.inputs == original.inputs.flip(3)).flatten(1).all(1)
        assert is_same.all() if augment == "none" else not is_same.all()
        assert augment in ("crop", "crop_flip") or (is_same | is_flipped).all()
    assert torch.equal(loader.val.inputs, plain.val.inputs)
    augmented = make(augment=augment, augment_validation=True).round(1).val
    assert torch.equal(augmented.inputs, plain.val.inputs) == (augment == "none")


def test_validation_and_test_are_whole_and_in_order():
    loader = make()
    rows = torch.cat([batch.indices for batch in loader.validation(2)])
    np.testing.assert_array_equal(rows, loader.sampler.split(2).validation)
    tested = list(loader.test())
    assert torch.cat([batch.indices for batch in tested]).tolist() == list(range(11))
    assert [len(batch.weights) for batch in tested] == [3, 3, 3, 2]
    torch.testing.assert_close(torch.cat([batch.weights for batch in tested]).sum(), torch.tensor(1.0))


def test_epoch_and_classes():
    loader = make()
    assert [loader.epoch(index) for index in (0, 2, 3)] == [0, 0, 1] and loader.num_classes == 3


def test_too_many_workers():
    with pytest.raises(UserError, match="smallest batch of a round has 7 images, too few for 8 workers"):
        make(world_size=8)
    with pytest.raises(UserError, match="has 1 images, too few for 2 workers"):  # 36 = 5 * 7 + 1
        make(fixed, at_pass_end="lose_step", world_size=2)


def test_padding_wider_than_the_image():
    with pytest.raises(UserError, match=r"data\.padding must be below the image size 8"):
        make(padding=8, padding_mode="reflect")


def test_crops_that_are_not_mirrored_are_from_the_places_of_those_that_are():
    rows = np.arange(len(DATASET.train.labels))
    part = [
        LabelledImages(DATASET.train.images, DATASET.train.labels, mean=DATASET.mean, std=DATASET.std, augment=augment)
        for augment in ("crop", "crop_flip")
    ]
    plain, mirrored = (each.draws(np.random.default_rng(0), len(rows)) for each in part)
    assert not plain[1].any() and 0 < mirrored[1].sum() < len(rows)
    np.testing.assert_array_equal(plain[0], mirrored[0])
