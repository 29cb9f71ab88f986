import numpy as np
import pytest

from l2t_ray.data.dataset import pixel_statistics

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 7, 5), dtype=np.uint8)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_statistics_of_pixels_are_those_of_all_at_once(block):
    mean, std = pixel_statistics(IMAGES, block=block)
    pixels = IMAGES / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    assert (mean, std) == pixel_statistics(IMAGES)


def test_images_of_one_colour_do_not_deviate():
    assert pixel_statistics(np.full((4, 1, 9, 9), 51, dtype=np.uint8)) == ((0.2,), (0.0,))
