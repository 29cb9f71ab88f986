"""The image sets by name: digits, mnist, fashion_mnist, cifar10, cifar100, cifar100_coarse, and folder, a user's own.

CIFAR and MNIST are read from torchvision's layout below a root folder, converted once into Arrow files, and
memory-mapped from then on: see `published.py`. The digits come with scikit-learn and need no file. Own images: see
`own.py`.
"""

import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from l2t_ray.data import own, published
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.converted import cache_directory, stamps
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.splits import choose_balanced
from l2t_ray.interfaces import UserError

DIGITS_TEST = 360
"""Test images among the 1,797 digits: 36 of each class, the same ones in every run."""
KEPT_OPEN = 4
"""Sets that a process keeps open; a study over more of them opens the oldest again."""

_open: OrderedDict[Hashable, tuple[Hashable, Dataset]] = OrderedDict()
"""The sets this process has open, the last used one at the end, each with the stamps of the files behind it."""


def load(
    name: str, *, root: Path, verify: bool = True, download: bool = True, image_size: int | None = None
) -> Dataset:
    """Opens an image set; the first time, converts (and where needed downloads) it.

    A process opens a set once: the same one is given again until one of its files is another.

    Args:
        name: one of `names()`.
        root: the folder that holds torchvision's `cifar-10-batches-py`, `cifar-100-python`, `MNIST/raw` or
            `FashionMNIST/raw`, or the user's own images. The Arrow files go to `root/arrow`, or to `~/.cache/l2t_ray`
            where `root` is read-only.
        verify: refuse files whose md5 is not the published one. Unpacked MNIST files, for which none is published,
            are checked by their size alone.
        download: fetch absent files with torchvision.
        image_size: height and width to reduce the images to, by averaging squares of pixels; None: as they are. The
            reduced images have Arrow files of their own. Mean and standard deviation stay those of the full size.
            Own images are scaled to any size.

    Raises:
        UserError: if the name is unknown, files are absent, damaged, or not the published ones, or the images cannot
            be cut into `image_size` whole squares.
    """
    root = Path(root)
    if name == "digits":
        return _opened_once((name, image_size), lambda: None, lambda: _digits(image_size))
    key = (name, root.absolute(), cache_directory(), verify, image_size)
    if name == "folder":
        return _opened_once(key, lambda: own.state(root, image_size), lambda: own.open_own(root, image_size))
    if name not in published.SETS:
        raise UserError(f"data.name must be one of {', '.join(names())}, got {name!r}.")
    return _opened_once(
        key,
        lambda: stamps(published.files_of(name, root, image_size)),
        lambda: published.open_published(name, root, verify=verify, download=download, image_size=image_size),
    )


def names() -> tuple[str, ...]:
    return ("digits", *published.SETS, "folder")


def _opened_once(key: Hashable, state: Callable[[], Hashable], make: Callable[[], Dataset]) -> Dataset:
    """What `make` gives, kept for as long as `state` stays what it was afterwards."""
    if key in _open and _open[key][0] == state():
        _open.move_to_end(key)
        return _open[key][1]
    _open.pop(key, None)
    dataset = make()
    _open[key] = (state(), dataset)
    while len(_open) > KEPT_OPEN:
        _open.popitem(last=False)
    return dataset


def _digits(image_size: int | None) -> Dataset:
    table = _digits_table()
    labels = table[:, -1].astype(np.int64)
    # The scans count ink dots, 0..16.
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    is_test = np.zeros(len(labels), dtype=bool)
    # Seed 0 whatever the run's seed: a test set that moves with the seed would compare runs on different images.
    is_test[choose_balanced(labels, DIGITS_TEST, seed=0, purpose="digits-test")] = True

    def part(rows: np.ndarray) -> ImageSet:
        source = {"name": "scikit-learn digits"}
        return ImageSet(images[rows], labels[rows], rows, tuple(str(digit) for digit in range(10)), source)

    train, test = part(np.flatnonzero(~is_test)), part(np.flatnonzero(is_test))
    pixels = train.images / 255
    mean, std = (float(pixels.mean()),), (float(pixels.std()),)
    train, test = (_read_only(published.reduced(images, image_size)) for images in (train, test))
    return Dataset("digits", train, test, mean, std)


def _read_only(images: ImageSet) -> ImageSet:
    """As images from a file are: all of a process look at the same ones."""
    for array in (images.images, images.labels, images.positions):
        array.flags.writeable = False
    return images


def _digits_table() -> Float[np.ndarray, "n 65"]:
    """Pixels and label of each scan, from the file that scikit-learn's `load_digits` reads.

    Without importing scikit-learn, which costs each process seconds of start-up.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.name=digits needs scikit-learn, which holds the scans: pip install scikit-learn.")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(path, delimiter=",")
