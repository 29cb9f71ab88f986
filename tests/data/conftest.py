import os
from pathlib import Path

import numpy as np
import pytest

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.catalog import Dataset


@pytest.fixture
def real_root() -> Path:
    """The folder with real files in torchvision's layout."""
    if not os.environ.get("L2T_DATA"):
        pytest.skip("L2T_DATA names no folder with real image files")
    return Path(os.environ["L2T_DATA"])


def small_dataset(num_train: int = 60, num_test: int = 11, num_classes: int = 3, size: int = 8) -> Dataset:
    generator = np.random.default_rng(0)

    def part(n: int) -> ImageSet:
        images = generator.integers(0, 256, (n, 2, size, size), dtype=np.uint8)
        names = tuple(f"class {label}" for label in range(num_classes))
        return ImageSet(images, np.arange(n) % num_classes, np.arange(n), names)

    return Dataset("small", part(num_train), part(num_test), (0.4, 0.5), (0.2, 0.3))
