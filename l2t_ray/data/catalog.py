"""Opens a data set by its name: one of `sets.py`, or a user's own function.

CIFAR and MNIST are read from torchvision's layout below a root folder, converted once into Arrow files, and
memory-mapped from then on: see `published.py`. The digits come with scikit-learn and need no file. Own images: see
`own.py`; images with masks: `mask_sets`; with boxes: `box_sets`.
"""

import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2t_ray.data import published
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.checked import AnyDataset, checked
from l2t_ray.data.converted import cache_directory
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.scans import digit_scans
from l2t_ray.data.sets import DATA_SETS, DataSet
from l2t_ray.data.splits import choose_balanced
from l2t_ray.import_path import imported, is_import_path
from l2t_ray.interfaces import UserError

DIGITS_TEST = 360
"""Test images among the 1,797 digits: 36 of each class, the same ones in every run."""
KEPT_OPEN = 4
"""Sets that a process keeps open; a study over more of them opens the oldest again."""

_open: OrderedDict[Hashable, tuple[Hashable, AnyDataset]] = OrderedDict()
"""The sets this process has open, the last used one at the end, each with the state of the files behind it."""


def load(
    name: str,
    *,
    root: Path,
    verify: bool = True,
    download: bool = True,
    image_size: int | None = None,
    shrink: int = 1,
    options: Mapping[str, Any] | None = None,
) -> AnyDataset:
    """Opens a data set; the first time, converts (and where needed downloads) it.

    A process opens a set once: the same one is given again until one of its files is another.

    Args:
        name: one of `DATA_SETS`, or `module:function` of a user's own.
        root: the folder that holds the files, such as torchvision's `cifar-10-batches-py` or `MNIST/raw`, or the
            user's own images. Arrow files go to `root/arrow`, or to `~/.cache/l2t_ray` where `root` is read-only.
        verify: refuse files whose md5 is not the published one. Unpacked MNIST files, for which none is published,
            are checked by their size alone.
        download: fetch absent files with torchvision.
        image_size: height and width to reduce the images to, by averaging squares of pixels; None: as they are. The
            reduced images have Arrow files of their own. Mean and standard deviation stay those of the full size.
            Own images are scaled to any size.
        shrink: how many times less height and width images with masks are to have (`MaskedSet.shrunk`).
        options: keyword arguments of the function that opens the set.

    Raises:
        UserError: if the name is unknown, files are absent, damaged, or not the published ones, the images cannot
            be cut into `image_size` whole squares, or the set has no such options.
    """
    if name not in DATA_SETS and not is_import_path(name):
        raise UserError(f"data.name must be one of {', '.join(DATA_SETS)}, or my.module:make, got {name!r}.")
    root, entry = Path(root), DATA_SETS.get(name) or DataSet(name)
    make = _function(entry.make, name)
    given = {"name": name, "root": root.absolute(), "verify": verify, "download": download, "image_size": image_size}
    arguments = _arguments(name, make, given, options or {})
    key = (name, cache_directory(), shrink, json.dumps(arguments, sort_keys=True, default=str))

    def state() -> Hashable:
        return _function(entry.state, name)(**_known(given, entry.state)) if entry.state else None

    def opened() -> AnyDataset:
        dataset = make(**arguments) if name in DATA_SETS else _own(name, make, arguments)
        return dataset.shrunk(shrink) if shrink > 1 and isinstance(dataset, MaskedDataset) else dataset

    return _opened_once(key, state, opened)


# --- Functions by their import path -----------------------------------------------------------------------------------


def _function(path: str, name: str) -> Callable[..., Any]:
    try:
        found = imported(path)
    except ValueError as error:
        raise UserError(f"data.name: {error}.") from error
    if not callable(found):
        raise UserError(f"data.name={name} is no function, but a {type(found).__name__}.")
    return found


def _parameters(function: Callable[..., Any], name: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"data.name={name} does not say what arguments it takes; wrap it in a function.") from None


def _known(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    parameters = _parameters(_function(path, path), path)
    return {key: value for key, value in given.items() if key in parameters}


def _arguments(
    name: str, make: Callable[..., Any], given: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the function is called with.

    Raises:
        UserError: if it has no parameter for something that was set, one that was not, or one of another type.
    """
    parameters = _parameters(make, name)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    own = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in given and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }
    if strange := [key for key in options if key not in own and (key in given or not takes_all)]:
        valid = f"it has {', '.join(own)}" if own else "it has none"
        raise UserError(f"data.options.{strange[0]} is no option of data.name={name}; {valid}.")
    if given["image_size"] is not None and "image_size" not in parameters:
        raise UserError(f"data.image_size is no setting of data.name={name}; leave it out.")
    for key, parameter in own.items():
        if key in options:
            _check_type(f"data.options.{key}", options[key], parameter.annotation)
        elif parameter.default is inspect.Parameter.empty:
            raise UserError(f"data.name={name} needs data.options.{key}; set it.")
    return {key: value for key, value in given.items() if key in parameters} | dict(options)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Compares with annotations that are one plain type; what others mean is the function's own affair."""
    wanted = {"int": int, "float": float, "str": str, "bool": bool}.get(getattr(annotation, "__name__", annotation))
    given = type(value)
    if wanted is not None and given is not wanted and not (wanted is float and given is int):
        what = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[wanted]
        raise UserError(f"{key} must be {what}, got {value!r}.")


def _own(name: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> AnyDataset:
    try:
        made = make(**arguments)
    except UserError:
        raise
    except Exception as error:  # A user's function can raise anything.
        raise UserError(f"data.name={name} failed with {type(error).__name__}: {error}.") from error
    return checked(f"data.name={name}", made)


def _opened_once(key: Hashable, state: Callable[[], Hashable], make: Callable[[], AnyDataset]) -> AnyDataset:
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


# --- The embedded digits ----------------------------------------------------------------------------------------------


def open_digits(image_size: int | None = None) -> Dataset:
    scans, labels = digit_scans()
    images = scans[:, None]
    # Seed 0 whatever the run's seed: a test set that moves with the seed would compare runs on different images.
    is_test = np.zeros(len(labels), dtype=bool)
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
