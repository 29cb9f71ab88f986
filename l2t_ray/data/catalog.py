"""The image sets by name: digits, mnist, fashion_mnist, cifar10, cifar100, cifar100_coarse, and folder, a user's own.

CIFAR and MNIST are read from torchvision's layout below a root folder, converted once into Arrow files, and
memory-mapped from then on. The digits come with scikit-learn and need no file. Own images: see `own.py`.
"""

import contextlib
import fcntl
import gzip
import hashlib
import importlib.util
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from l2t_ray.data import own
from l2t_ray.data.arrow import ImageSet, read_images, read_source, write_images
from l2t_ray.data.splits import choose_balanced
from l2t_ray.interfaces import UserError

DIGITS_TEST = 360
"""Test images among the 1,797 digits: 36 of each class, the same ones in every run."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test set, with the pixel statistics (per channel, pixels in 0..1) to normalise them by."""

    name: str
    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Int[np.ndarray, " v"] | None = None
    """Rows of `train` that the user set apart as clean; None: they are to be chosen."""

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)


def load(
    name: str, *, root: Path, verify: bool = True, download: bool = True, image_size: int | None = None
) -> Dataset:
    """Opens an image set; the first time, converts (and where needed downloads) it.

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
    if name == "digits":
        digits = _digits()
        return replace(digits, train=_reduced(digits.train, image_size), test=_reduced(digits.test, image_size))
    if name == "folder":
        return _own(Path(root), image_size)
    if name not in _SETS:
        raise UserError(f"data.name must be one of {', '.join(names())}, got {name!r}.")
    kind = _SETS[name]
    root = Path(root)
    part = _part if image_size is None else partial(_reduced_part, image_size=image_size)
    train = part(kind, "train", root, verify=verify, download=download)
    test = part(kind, "test", root, verify=verify, download=download)
    return Dataset(name, train, test, kind.mean, kind.std)


def names() -> tuple[str, ...]:
    return ("digits", *_SETS, "folder")


def _digits() -> Dataset:
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
    return Dataset("digits", train, test, (float(pixels.mean()),), (float(pixels.std()),))


def _digits_table() -> Float[np.ndarray, "n 65"]:
    """Pixels and label of each scan, from the file that scikit-learn's `load_digits` reads.

    Without importing scikit-learn, which costs each process seconds of start-up.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.name=digits needs scikit-learn, which holds the scans: pip install scikit-learn.")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(path, delimiter=",")


# --- A user's own images ----------------------------------------------------------------------------------------------


def _own(root: Path, image_size: int | None) -> Dataset:
    parts = own.list_parts(root)
    names, mode = own.class_names(parts["train"]), own.mode_of(parts["train"])
    sets = {
        part: replace(
            _own_part(root, part, listing, names, mode=mode, image_size=image_size), names=own.file_names(listing, root)
        )
        for part, listing in parts.items()
    }
    shapes = {part: images.images.shape[2:] for part, images in sets.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{part} {height}x{width}" for part, (height, width) in shapes.items())
        raise UserError(f"The images below {root} are of several sizes ({listed}); set data.image_size to one for all.")
    train = sets["train"]
    pixels = train.images / np.float32(255)
    mean, std = pixels.mean(axis=(0, 2, 3), dtype=np.float64), pixels.std(axis=(0, 2, 3), dtype=np.float64)
    validation = None
    if "validation" in sets:
        clean = sets["validation"]
        validation = np.arange(len(train), len(train) + len(clean))
        train = ImageSet(
            np.concatenate([train.images, clean.images]),
            np.concatenate([train.labels, clean.labels]),
            np.arange(len(train) + len(clean)),
            train.class_names,
            train.source,
            None if train.names is None else (*train.names, *(clean.names or [""] * len(clean))),
        )
    std = np.maximum(std, 1 / 255)  # images of one colour have nothing to be scaled by
    return Dataset("folder", train, sets["test"], tuple(mean.tolist()), tuple(std.tolist()), validation)


def _own_part(
    root: Path, part: str, listing: own.Listing, names: Sequence[str], *, mode: str, image_size: int | None
) -> ImageSet:
    where = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]  # the cache is shared by all of a user's roots
    size = "" if image_size is None else f"-{image_size}x{image_size}"
    paths = [directory / f"folder-{where}-{part}{size}.arrow" for directory in _arrow_directories(root)]
    source = {"name": "folder", "fingerprint": listing.fingerprint, "mode": mode, "class_names": list(names)}
    for path in paths:
        if path.exists() and read_source(path) == source:
            return read_images(path)
    images = own.decode(listing, names, image_size=image_size, mode=mode, what=f"{part} images")
    return _kept(replace(images, source=source), paths)


# --- Sets that are files ----------------------------------------------------------------------------------------------

Rows = tuple[UInt8[np.ndarray, "n c h w"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], list[str]]
"""Images, labels, positions in the published set, class names."""


@dataclass(frozen=True)
class _Kind:
    """How one set lies on disk. `sources(part)` gives its files and their published md5 (None: none is published)."""

    name: str
    folder: str
    torchvision_class: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: dict[str, tuple[str, ...]]
    read: Callable[["_Kind", Path, str], Rows]


def _part(kind: _Kind, part: str, root: Path, *, verify: bool, download: bool) -> ImageSet:
    with _one_at_a_time(f"{kind.name}-{part}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"):
        return _prepared(kind, part, root, verify=verify, download=download)


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Lets one process of this machine prepare a set while the others wait, and then find it prepared."""
    with contextlib.ExitStack() as stack:
        # Not beside the images: that may be a file system of several machines, on which locks are not to be trusted.
        with contextlib.suppress(OSError):  # without a place for it, each prepares its own
            lock = stack.enter_context((Path(tempfile.gettempdir()) / f"l2t_ray-{os.getuid()}-{name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, also by a process that dies
        yield


def _prepared(kind: _Kind, part: str, root: Path, *, verify: bool, download: bool) -> ImageSet:
    paths = [directory / f"{kind.name}-{part}.arrow" for directory in _arrow_directories(root)]
    folder = root / kind.folder
    for path in paths:
        if path.exists() and _is_current(read_source(path), kind, folder, part, verify=verify):
            return read_images(path)
    if _absent(kind, folder, part):
        _obtain(kind, root, folder, part, download=download)
    md5s = _checked_md5s(kind, folder, part, verify=verify)
    try:
        images, labels, positions, class_names = kind.read(kind, folder, part)
    except UserError:
        raise
    except Exception as error:  # A damaged pickle or gzip stream can raise nearly anything.
        raise UserError(
            f"The {kind.name} files in {folder} cannot be read ({error}); delete that folder and put an undamaged "
            "copy there."
        ) from error
    source = {"name": kind.name, "verified": verify, "md5": md5s, "stamp": _stamp(kind, folder, part)}
    return _kept(ImageSet(images, labels, positions, tuple(class_names), source), paths)


def _reduced_part(kind: _Kind, part: str, root: Path, *, verify: bool, download: bool, image_size: int) -> ImageSet:
    stem = f"{kind.name}-{part}-{image_size}x{image_size}"
    paths = [directory / f"{stem}.arrow" for directory in _arrow_directories(root)]
    for path in paths:
        if path.exists() and _is_current(read_source(path), kind, root / kind.folder, part, verify=verify):
            return read_images(path)
    return _kept(_reduced(_part(kind, part, root, verify=verify, download=download), image_size), paths)


def _reduced(whole: ImageSet, image_size: int | None) -> ImageSet:
    """The images at `image_size` x `image_size`, each new pixel the mean of a square of old ones."""
    if image_size is None:
        return whole
    n, channels, height, width = whole.images.shape
    if image_size > height or height != width or height % image_size:
        raise UserError(
            f"data.image_size must divide the image size without rest, got {image_size} for images of {height}x{width}."
        )
    factor = height // image_size
    squares = whole.images.reshape(n, channels, image_size, factor, image_size, factor)
    means = squares.sum(axis=(3, 5), dtype=np.uint32) / factor**2
    return replace(whole, images=np.rint(means).astype(np.uint8))


def _kept(images: ImageSet, paths: Sequence[Path]) -> ImageSet:
    """The images, from an Arrow file at the first of the paths that can be written."""
    reasons = []
    for path in paths:
        try:
            write_images(
                path,
                images.images,
                images.labels,
                class_names=images.class_names,
                source=images.source,
                positions=images.positions,
            )
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror or error}")
        else:
            return read_images(path)
    name = images.source["name"]
    raise UserError(f"No folder can hold the converted {name} images ({'; '.join(reasons)}); free or unlock one.")


def _arrow_directories(root: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / "arrow", cache / "l2t_ray"]


def _is_current(source: Any, kind: _Kind, folder: Path, part: str, *, verify: bool) -> bool:
    # An Arrow file is used when it was checked at least as strictly as asked for, and stems from the files that lie
    # there now. On a machine that has the Arrow file alone, that file is the set.
    if verify and not source["verified"]:
        return False
    return bool(_absent(kind, folder, part)) or source["stamp"] == _stamp(kind, folder, part)


def _stamp(kind: _Kind, folder: Path, part: str) -> dict[str, list[int]]:
    # Size and time tell a replaced file well enough, and at no cost; the md5 of 180 MB at every start would not.
    stamps = {}
    for name in kind.files[part]:
        status = _present(folder / name).stat()
        stamps[name] = [status.st_size, status.st_mtime_ns]
    return stamps


def _present(path: Path) -> Path:
    """The file itself, or its packed form: MNIST is published as `.gz`, and torchvision keeps both."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() else path


def _absent(kind: _Kind, folder: Path, part: str) -> list[str]:
    return [name for name in kind.files[part] if not _present(folder / name).exists()]


def _obtain(kind: _Kind, root: Path, folder: Path, part: str, *, download: bool) -> None:
    wanted = f"put {', '.join(kind.files[part])} into {folder}"
    if not download:
        raise UserError(f"data.download is false and {kind.name} is not there: {wanted}, or set data.download=true.")
    if any(_present(folder / name).exists() for names in kind.files.values() for name in names):
        # torchvision would overwrite what is there, and that may be somebody's own version.
        absent = ", ".join(_absent(kind, folder, part))
        raise UserError(f"The copy of {kind.name} in {folder} is incomplete ({absent} not found): {wanted}.")
    import torchvision.datasets

    try:
        getattr(torchvision.datasets, kind.torchvision_class)(str(root), download=True)
    except Exception as error:  # Network, disk, proxies: whatever it was, the remedy is the same.
        raise UserError(
            f"{kind.name} could not be downloaded ({str(error).strip() or type(error).__name__}): {wanted}, "
            "or set data.root to the folder that has it."
        ) from error


def _checked_md5s(kind: _Kind, folder: Path, part: str, *, verify: bool) -> dict[str, str]:
    published = _published_md5s(kind) if verify else {}
    found = {}
    for name in kind.files[part]:
        path = _present(folder / name)
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "md5").hexdigest()
        expected = published.get(path.name)
        if expected is not None and found[path.name] != expected:
            raise UserError(
                f"{path} is not the published file (md5 {found[path.name]}, expected {expected}): replace it, "
                "or set data.verify=false to use this copy as it is."
            )
    return found


def _published_md5s(kind: _Kind) -> dict[str, str]:
    import torchvision.datasets

    source = getattr(torchvision.datasets, kind.torchvision_class)
    if hasattr(source, "resources"):
        return dict(source.resources)
    return {name: md5 for name, md5 in [*source.train_list, *source.test_list]} | {
        source.meta["filename"]: source.meta["md5"]
    }


# --- CIFAR: pickles ---------------------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, lists, strings and NumPy arrays; a file that asks for any other name is refused.

    A pickle can name any function for the reader to call, so that an unchecked copy could run code.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return np.dtype
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                # Asked of an array, since the module's name differs between NumPy 1 and 2.
                return np.empty(0).__reduce__()[0]  # pyright: ignore[reportIndexIssue]
            case ("_codecs", "encode"):  # how Python 3 writes bytes into the older pickles
                return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an image file has no use for")


def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def _read_cifar(kind: _Kind, folder: Path, part: str) -> Rows:
    *batches, meta = kind.files[part]
    labels_key, names_key = _CIFAR_KEYS[kind.name]
    images, labels, file_names = [], [], []
    for batch in batches:
        content = _unpickle(folder / batch)
        images.append(np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
        labels += content[labels_key]
        file_names += content.get("filenames", [])
    pixels = np.concatenate(images)
    if len(labels) != len(pixels):
        raise ValueError(f"{len(pixels)} images but {len(labels)} labels")
    positions = _positions(file_names, len(pixels))
    return pixels, np.asarray(labels, dtype=np.int64), positions, list(_unpickle(folder / meta)[names_key])


def _positions(file_names: Sequence[str], count: int) -> Int[np.ndarray, " n"]:
    # Copies without some of the images name their rows by the place in the published set; the published names
    # (`leptodactylus_pentadactylus_s_000004.png`) do not, and there the rows are whole.
    matches = [re.fullmatch(r"(?:train|test)_(\d+)\.png", name) for name in file_names]
    if len(matches) == count and all(matches):
        return np.array([int(match[1]) for match in matches if match], dtype=np.int64)
    return np.arange(count)


# --- MNIST: IDX files -------------------------------------------------------------------------------------------------


def _read_mnist(kind: _Kind, folder: Path, part: str) -> Rows:
    images, labels = (_read_idx(_present(folder / name)) for name in kind.files[part])
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(f"expected n images of 28x28 and n labels, got {images.shape} and {labels.shape}")
    return images[:, None], labels.astype(np.int64), np.arange(len(labels)), list(_MNIST_NAMES[kind.name])


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An IDX file of bytes: two zeros, the type (8), the number of axes, each axis as big-endian int32, the values."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], dtype=">i4")
    return np.frombuffer(content[start:], dtype=np.uint8).reshape(shape)


_MNIST_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}
_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR10_FILES = {
    "train": (*(f"data_batch_{number}" for number in range(1, 6)), "batches.meta"),
    "test": ("test_batch", "batches.meta"),
}
_CIFAR_KEYS = {
    "cifar10": ("labels", "label_names"),
    "cifar100": ("fine_labels", "fine_label_names"),
    "cifar100_coarse": ("coarse_labels", "coarse_label_names"),
}
_CIFAR100_FILES = {"train": ("train", "meta"), "test": ("test", "meta")}

_SETS = {
    kind.name: kind
    for kind in (
        # Mean and standard deviation over the training pixels of the published sets.
        _Kind("mnist", "MNIST/raw", "MNIST", (0.1307,), (0.3081,), _MNIST_FILES, _read_mnist),
        _Kind("fashion_mnist", "FashionMNIST/raw", "FashionMNIST", (0.2860,), (0.3530,), _MNIST_FILES, _read_mnist),
        _Kind(
            "cifar10",
            "cifar-10-batches-py",
            "CIFAR10",
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            _CIFAR10_FILES,
            _read_cifar,
        ),
        *(
            _Kind(
                name,
                "cifar-100-python",
                "CIFAR100",
                (0.5071, 0.4865, 0.4409),
                (0.2673, 0.2564, 0.2762),
                _CIFAR100_FILES,
                _read_cifar,
            )
            for name in ("cifar100", "cifar100_coarse")
        ),
    )
}
