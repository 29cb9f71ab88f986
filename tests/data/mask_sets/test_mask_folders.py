"""A user's own images with masks: what is read, and one sentence for what is wrong."""

import re

import numpy as np
import pytest
from PIL import Image

from l2t_ray.data import image_files
from l2t_ray.data.mask_sets import mask_files
from l2t_ray.data.mask_sets.mask_folders import open_mask_folder
from l2t_ray.interfaces import UserError

COLOURS = ((0, 0, 0), (200, 0, 0), (0, 0, 250), (9, 9, 9))
"""Of sky, road, car and void."""
TABLE = "name,r,g,b\nsky,0,0,0\nroad,200,0,0\ncar,0,0,250\nVoid,9,9,9\n"


def mask_of(seed, size=(6, 8), high=3):
    mask = np.random.default_rng(seed).integers(0, high, size, dtype=np.uint8)
    mask[0, :3] = range(3)
    return mask


def save_image(path, size=(6, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_mask(path, mask, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette is not None:
        image.putpalette([value for colour in palette for value in colour])
    image.save(path)


def make(root, encode=lambda path, mask: save_mask(path, mask), parts=("train", "validation", "test")):
    masks = {}
    for number, part in enumerate(parts):
        for image in range(3):
            mask = masks[part, image] = mask_of(10 * number + image)
            save_image(root / part / "images" / f"{image}.jpg", seed=image)
            encode(root / part / "masks" / f"{image}.png", mask)
    return masks


def as_colours(path, mask):
    save_mask(path, np.array(COLOURS, dtype=np.uint8)[mask])


def as_palette(path, mask):
    save_mask(path, mask, COLOURS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("encode", [as_colours, as_palette])
def test_colours_and_palettes_mean_what_the_table_says(tmp_path, encode):
    masks = make(tmp_path, encode)
    (tmp_path / "classes.csv").write_text(TABLE)
    masks["train", 1][2, 2] = 3
    encode(tmp_path / "train/masks/1.png", masks["train", 1])
    dataset = open_mask_folder(tmp_path)
    assert dataset.train.class_names == ("sky", "road", "car") and dataset.num_classes == 3
    assert len(dataset.train) == 6 and dataset.validation.tolist() == [3, 4, 5] and len(dataset.test) == 3
    found = dataset.train.pairs[1][1]
    assert found[2, 2] == dataset.train.ignore == 255
    np.testing.assert_array_equal(np.where(found == 255, 3, found), masks["train", 1])
    np.testing.assert_array_equal(dataset.train.pairs[4][1], masks["validation", 1])
    assert dataset.train.pairs[0][0].shape == (3, 6, 8) and dataset.train.sizes.tolist() == [[6, 8]] * 6


def test_palettes_in_another_order_mean_the_same_colours(tmp_path):
    masks = make(tmp_path, as_palette)
    (tmp_path / "classes.csv").write_text(TABLE)
    order = np.array([2, 0, 1], dtype=np.uint8)  # class 0 is number 2 of this file
    save_mask(tmp_path / "train/masks/0.png", order[masks["train", 0]], [COLOURS[1], COLOURS[2], COLOURS[0]])
    np.testing.assert_array_equal(open_mask_folder(tmp_path).train.pairs[0][1], masks["train", 0])


def test_numbers_are_classes_without_a_table(tmp_path):
    masks = make(tmp_path, parts=("train", "test"))
    masks["train", 2][3] = 255
    save_mask(tmp_path / "train/masks/2.png", masks["train", 2])
    dataset = open_mask_folder(tmp_path)
    assert dataset.train.class_names == ("0", "1", "2") and dataset.validation is None
    np.testing.assert_array_equal(dataset.train.pairs[2][1], masks["train", 2])
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\nboat\n")
    named = open_mask_folder(tmp_path)
    assert named.train.class_names == ("sky", "road", "car", "boat")
    assert named.notes == ("no training mask has the class 'boat'",)


def test_large_sets_are_read_when_asked_for_and_are_the_same(tmp_path, monkeypatch):
    make(tmp_path)
    whole = open_mask_folder(tmp_path)
    monkeypatch.setattr(mask_files, "IN_MEMORY", 0)
    read = open_mask_folder(tmp_path)
    assert isinstance(read.train.pairs, mask_files.FilePairs) and (read.mean, read.std) == (whole.mean, whole.std)
    for a, b in zip(read.train.pairs, whole.train.pairs, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    before = read.train.digest()
    save_mask(tmp_path / "train/masks/1.png", mask_of(99))
    assert open_mask_folder(tmp_path).train.digest() != before


def test_large_sets_are_read_once_before_training_and_not_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_files, "IN_MEMORY", 0)
    make(tmp_path)
    image = tmp_path / "train/images/1.jpg"
    whole = image.read_bytes()
    turned(tmp_path)
    with pytest.raises(UserError, match="save it upright"):
        open_mask_folder(tmp_path)
    image.write_bytes(whole)
    open_mask_folder(tmp_path)
    passes = []
    monkeypatch.setattr(image_files, "tracked", lambda things, what: passes.append(what) or things)
    open_mask_folder(tmp_path)
    assert passes == []
    image.write_bytes(whole)
    open_mask_folder(tmp_path)
    assert passes == ["checking images of mask_folder"]


def test_images_of_which_every_pixel_is_ignored_are_left_out_and_noted(tmp_path):
    make(tmp_path)
    save_mask(tmp_path / "train/masks/1.png", np.full((6, 8), 255, dtype=np.uint8))
    dataset = open_mask_folder(tmp_path)
    assert len(dataset.train) == 5 and dataset.validation.tolist() == [2, 3, 4]
    assert [re.sub(".*/train", "train", note) for note in dataset.notes] == [
        "train/images/1.jpg left out: all of its pixels are ignored"
    ]


def test_images_of_several_sizes_are_one_set(tmp_path):
    make(tmp_path)
    save_image(tmp_path / "train/images/1.jpg", (20, 5))
    save_mask(tmp_path / "train/masks/1.png", mask_of(1, (20, 5)))
    train = open_mask_folder(tmp_path).train
    assert train.sizes.tolist()[:2] == [[6, 8], [20, 5]] and train.frame == (20, 8)


def other_size(root):
    save_mask(root / "train/masks/1.png", mask_of(1, (8, 6)))


def out_of_range(root):
    (root / "classes.txt").write_text("sky\nroad\n")


def beyond_the_training_masks(root):
    save_mask(root / "test/masks/1.png", mask_of(1, high=6))


def no_mask(root):
    (root / "train/masks/1.png").unlink()


def no_image(root):
    (root / "train/images/1.jpg").unlink()


def other_palette(root):
    save_mask(root / "train/masks/0.png", mask_of(0), COLOURS)
    save_mask(root / "train/masks/1.png", mask_of(1), COLOURS[::-1])


def colour_of_no_class(root):
    (root / "classes.csv").write_text(TABLE)
    for part in ("train", "validation", "test"):
        for image in range(3):
            as_palette(root / part / "masks" / f"{image}.png", mask_of(image))
    save_mask(root / "train/masks/2.png", mask_of(2), [(0, 0, 0), (7, 8, 9), (0, 0, 250)])


def numbers_beside_a_table(root):
    (root / "classes.csv").write_text(TABLE)


def colours_without_a_table(root):
    as_colours(root / "train/masks/0.png", mask_of(0))


def blurred(root):
    (root / "train/masks/1.png").unlink()
    save_mask(root / "train/masks/1.jpg", mask_of(1))


def of_another_format(root):
    (root / "train/masks/1.png").unlink()
    np.save(root / "train/masks/1.npy", mask_of(1))


def all_ignored(root):
    for image in range(3):
        save_mask(root / f"test/masks/{image}.png", np.full((6, 8), 255, dtype=np.uint8))


def one_class(root):
    for part in ("train", "validation", "test"):
        for image in range(3):
            save_mask(root / part / "masks" / f"{image}.png", np.uint8(255) * (mask_of(image) > 0))


def no_test(root):
    (root / "test").rename(root / "other")


def turned(root):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(root / "train/images/1.jpg").save(root / "train/images/1.jpg", exif=exif)


def damaged(root):
    path = root / "train/masks/1.png"
    path.write_bytes(path.read_bytes()[:60])


def table_with_a_hole(root):
    (root / "classes.csv").write_text("name,r,g,b\nsky,0,0,0\nroad,300,0,0\n")


def table_with_a_colour_twice(root):
    (root / "classes.csv").write_text("sky,0,0,0\nroad,0,0,0\n")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (other_size, r"masks/1\.png has 6x8 pixels and its image .*images/1\.jpg 8x6; give both the same size"),
        (out_of_range, r"has the class number 2, where 0 to 1 are classes and 255 is ignored"),
        (beyond_the_training_masks, r"test part has the class number \d, and those of the training part go up to 2"),
        (no_mask, r"train/images/1\.jpg has no mask; expected .*train/masks/1\.png"),
        (no_image, r"train/masks/1\.png is the mask of no image"),
        (other_palette, r"1\.png has the colour \(9, 9, 9\) for the number 0, which is \(0, 0, 0\) in .*0\.png"),
        (colour_of_no_class, r"2\.png has \d+ pixels of the colour \(7, 8, 9\), which is in no line of .*classes\.csv"),
        (
            numbers_beside_a_table,
            r"of the colour \(1, 1, 1\), .* \(are the numbers classes\? Then write .* classes\.txt",
        ),
        (colours_without_a_table, r"has colours where class numbers are expected; write classes\.csv"),
        (blurred, r"1\.jpg is JPEG, which changes numbers to save room; save it as PNG"),
        (of_another_format, r"masks/1\.npy is of a format that is not read; convert it to PNG"),
        (all_ignored, r"no image of the test part has a pixel that counts"),
        (one_class, r"the training masks have a single class, 0, beside 255"),
        (no_test, r"has no test/images; put images into test/images and their masks into test/masks"),
        (turned, r"1\.jpg is to be turned as its EXIF data says, and its mask has none; save it upright"),
        (damaged, r"1\.png is no readable image"),
        (table_with_a_hole, r"classes\.csv has the line 'road,300,0,0'; expected name,r,g,b"),
        (table_with_a_colour_twice, r"classes\.csv has the colour \(0, 0, 0\) twice"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, spoil, message):
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        open_mask_folder(tmp_path)
    assert "\n" not in str(refusal.value)
