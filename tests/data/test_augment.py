import numpy as np
import pytest
import torch

from l2t_ray.data.augment import crop_and_flip, normalise, pixels_of

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=GENERATOR)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("padding", [0, 2, 4])
def test_equals_padding_cutting_and_flipping_one_by_one(mode, padding):
    offsets = torch.randint(0, 2 * padding + 1, (40, 2), generator=GENERATOR)
    flips = torch.rand(40, generator=GENERATOR) < 0.5
    windows = crop_and_flip(IMAGES, offsets, flips, padding=padding, mode=mode)
    for image, (top, left), is_flipped, window in zip(IMAGES.numpy(), offsets.tolist(), flips, windows, strict=True):
        edge = [(0, 0), (padding, padding), (padding, padding)]
        padded = np.pad(image, edge, mode="constant" if mode == "zero" else "reflect")
        expected = padded[:, top : top + 9, left : left + 7]
        np.testing.assert_array_equal(window, expected[:, :, ::-1] if is_flipped else expected)


def test_middle_window_is_the_image():
    untouched = crop_and_flip(IMAGES, torch.full((40, 2), 4), torch.zeros(40, dtype=torch.bool))
    assert torch.equal(untouched, IMAGES)


def test_no_images():
    assert crop_and_flip(IMAGES[:0], torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)).shape == (
        *(0, 3, 9, 7),
    )


def test_reflection_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="reflect padding of 7"):
        crop_and_flip(IMAGES, torch.zeros(40, 2, dtype=torch.int64), torch.zeros(40, dtype=torch.bool), padding=7,
                      mode="reflect")  # fmt: skip


def test_normalise():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    expected = (IMAGES.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    actual = normalise(IMAGES, mean, std)
    # float32, values up to 6 from terms up to 10: a few units in the last place
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-6)


def test_normalised_pixels_are_found_again():
    mean, std = (0.5, 0.1, 0.0), (0.2, 0.5, 1.0)
    assert torch.equal(pixels_of(normalise(IMAGES, mean, std), mean, std), IMAGES)


def test_pixels_of_an_unknown_scale_go_from_black_to_white():
    inputs = torch.tensor([[[[-2.0, 0.0], [2.0, 2.0]]], [[[7.0, 7.0], [7.0, 7.0]]]])
    assert pixels_of(inputs, (), ()).flatten(1).tolist() == [[0, 128, 255, 255], [0, 0, 0, 0]]
