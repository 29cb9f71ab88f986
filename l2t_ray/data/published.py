"""Published sets that lie in torchvision's layout: CIFAR and MNIST.

Their files are compared with the published md5s, read, and kept as Arrow files.
"""

import gzip
import hashlib
import pickle
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.converted import Stamp, arrow_paths, cache_directory, keep, open_current, stamp, stamps, warn_of
from l2t_ray.data.dataset import Dataset
from l2t_ray.data.lock import one_at_a_time
from l2t_ray.extras import needed_by
from l2t_ray.interfaces import UserError

_Part = tuple[UInt8[np.ndarray, "n c h w"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], list[str]]
"""Images, labels, positions in the published set, class names."""


@dataclass(frozen=True)
class _Kind:
    """How one set lies on disk: its folder below the root, and the files of each part."""

    name: str
    folder: str
    torchvision_class: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: dict[str, tuple[str, ...]]
    read: Callable[["_Kind", Path, str], _Part]


def open_published(name: str, root: Path, *, verify: bool, download: bool, image_size: int | None) -> Dataset:
    """One of `SETS`; see `catalog.load`."""
    kind = SETS[name]
    train, test = (
        _part(kind, part, root, verify=verify, download=download, image_size=image_size) for part in ("train", "test")
    )
    return Dataset(name, train, test, kind.mean, kind.std)


def state(name: str, root: Path, image_size: int | None) -> Hashable:
    """Of all files that decide what `open_published` gives: another value, another set."""
    kind = SETS[name]
    sources = {_present(root / kind.folder / file) for files in kind.files.values() for file in files}
    arrows = {path for part in kind.files for size in (None, image_size) for path in _paths(kind, part, root, size)}
    return stamps(sorted(sources | arrows))


def reduced(whole: ImageSet, image_size: int | None) -> ImageSet:
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


def _part(
    kind: _Kind, part: str, root: Path, *, verify: bool, download: bool, image_size: int | None = None
) -> ImageSet:
    paths, folder = _paths(kind, part, root, image_size), root / kind.folder

    def is_current(source: Mapping[str, Any]) -> bool:
        return _is_current(source, kind, folder, part, verify=verify)

    images, _ = open_current(paths, is_current)
    if images is not None:
        return images
    if image_size is not None:
        whole = _part(kind, part, root, verify=verify, download=download)
        _, damage = open_current(paths, is_current)
        warn_of(damage)
        return keep(reduced(whole, image_size), paths)
    where = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    name = f"{kind.name}-{part}-{where}.lock"
    with one_at_a_time(cache_directory() / "locks", name, doing=f"converting {kind.name} below {root}"):
        images, damage = open_current(paths, is_current)  # another process may have made it meanwhile
        if images is not None:
            return images
        if damage is not None and _absent(kind, folder, part) and not download:
            raise damage
        warn_of(damage)
        return keep(_converted(kind, part, root, verify=verify, download=download), paths)


def _paths(kind: _Kind, part: str, root: Path, image_size: int | None) -> list[Path]:
    size = "" if image_size is None else f"-{image_size}x{image_size}"
    return arrow_paths(root, f"{kind.name}-{part}{size}")


def _converted(kind: _Kind, part: str, root: Path, *, verify: bool, download: bool) -> ImageSet:
    folder = root / kind.folder
    if _absent(kind, folder, part):
        _obtain(kind, root, folder, part, download=download)
    md5s = _checked_md5s(kind, folder, part, verify=verify)
    try:
        images, labels, positions, class_names = kind.read(kind, folder, part)
    except Exception as error:  # A damaged pickle or gzip stream can raise nearly anything.
        raise UserError(
            f"The {kind.name} files in {folder} cannot be read ({error}); delete that folder and put an undamaged "
            "copy there."
        ) from error
    source = {"name": kind.name, "verified": verify, "md5": md5s, "stamp": _stamp(kind, folder, part)}
    return ImageSet(images, labels, positions, tuple(class_names), source)


def _is_current(source: Mapping[str, Any], kind: _Kind, folder: Path, part: str, *, verify: bool) -> bool:
    # An Arrow file is used when it was checked at least as strictly as asked for, and stems from the files that lie
    # there now. On a machine that has the Arrow file alone, that file is the set.
    if verify and not source["verified"]:
        return False
    return bool(_absent(kind, folder, part)) or source["stamp"] == _stamp(kind, folder, part)


def _stamp(kind: _Kind, folder: Path, part: str) -> dict[str, Stamp]:
    return {name: stamp(_present(folder / name).stat()) for name in kind.files[part]}


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
    with needed_by(f"the set {kind.name}"):
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
    with needed_by(f"the set {kind.name}"):
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


def _read_cifar(kind: _Kind, folder: Path, part: str) -> _Part:
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


def _read_mnist(kind: _Kind, folder: Path, part: str) -> _Part:
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

SETS = {
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
