"""A user's own images: folders of image files, or tables with the encoded images in a column.

Below a root folder, for each of `train`, `test` and, if there is one, `validation`:

    train/<class>/*.png      one folder a class, any format that Pillow reads (torchvision's ImageFolder layout), or
    train.parquet            (or train.arrow) with columns `image` (encoded bytes, or Hugging Face's struct with
                             `bytes`) and `label` (class names, or numbers)

`validation` holds images whose labels are known to be right; where it is absent, they are chosen among the training
images. Everything is decoded once, into the same Arrow files as any other set.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track

from l2t_ray.data.arrow import ImageSet
from l2t_ray.interfaces import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PARTS = ("train", "validation", "test")


class Listing(NamedTuple):
    """The images of a part before they are decoded: `(what, where)` pairs, a class name each, and a fingerprint."""

    images: Sequence[tuple[Path | bytes, str]]
    labels: Sequence[str]
    fingerprint: str


def list_parts(root: Path) -> dict[str, Listing]:
    """What lies below `root`, by part.

    Raises:
        UserError: if training or test images are absent, or a part has no image or no class in common with training.
    """
    found = {part: listing for part in PARTS if (listing := _listing(root, part)) is not None}
    for part in ("train", "test"):
        if part not in found:
            raise UserError(
                f"data.name=folder, but {root} has neither {part}/<class>/*.png nor {part}.parquet; "
                "set data.root to the folder that has them."
            )
    classes = set(found["train"].labels)
    for part, listing in found.items():
        strange = sorted(set(listing.labels) - classes)
        if strange:
            raise UserError(
                f"{root / part} has the class {strange[0]!r}, which {root / 'train'} has not; add or remove it."
            )
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} has a single class, {min(classes)!r}; at least two are needed.")
    return found


def class_names(listing: Listing) -> tuple[str, ...]:
    """In alphabetical order, as ImageFolder has them; plain numbers in that of their values."""
    names = set(listing.labels)
    return tuple(sorted(names, key=(lambda name: int(name)) if all(name.isdigit() for name in names) else None))


def file_names(listing: Listing, root: Path) -> tuple[str, ...] | None:
    """Each image's path below the root, with `/` between; None where the images lie in a table."""
    contents = [content for content, _ in listing.images]
    paths = [content.relative_to(root).as_posix() for content in contents if isinstance(content, Path)]
    return tuple(paths) if len(paths) == len(contents) else None


def decode(listing: Listing, names: Sequence[str], *, image_size: int | None, mode: str, what: str) -> ImageSet:
    """The images as one array, all of one size.

    Args:
        image_size: scale each image to cover a square of this size, by averaging, and cut its middle out; None: the
            images must be of one size already.
        mode: Pillow's `L` or `RGB`.
        what: for messages and the progress bar.

    Raises:
        UserError: if an image cannot be read, or has a size of its own.
    """
    pixels: list[UInt8[np.ndarray, "h w c"]] = []
    for content, where in track(
        listing.images, description=f"reading {what}", transient=True, disable=not sys.stdout.isatty()
    ):
        image = _open(content, where).convert(mode)
        if image_size is not None:
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BOX)
        array = np.asarray(image).reshape(image.height, image.width, -1)
        if pixels and array.shape != pixels[0].shape:
            raise UserError(
                f"{where} has {image.width}x{image.height} pixels, the image before it another size; set "
                "data.image_size=32, or another size that all are scaled to."
            )
        pixels.append(array)
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[label] for label in listing.labels], dtype=np.int64)
    images = np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))
    return ImageSet(images, labels, np.arange(len(labels)), tuple(names), {})


def mode_of(listing: Listing) -> str:
    """`L` if the first image is grey, else `RGB`."""
    return "L" if _open(*listing.images[0]).mode in ("1", "L", "I", "I;16") else "RGB"


def _open(content: Path | bytes, where: str) -> Image.Image:
    try:
        image = Image.open(content if isinstance(content, Path) else io.BytesIO(content))
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is no readable image ({error}); mend it or take it out.") from error
    return image


def _listing(root: Path, part: str) -> Listing | None:
    if (root / part).is_dir():
        return _of_folder(root / part)
    for path in (root / f"{part}.parquet", root / f"{part}.arrow"):
        if path.exists():
            return _of_table(path)
    return None


def _of_folder(folder: Path) -> Listing:
    images, labels, facts = [], [], []
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES):
            status = path.stat()
            images.append((path, str(path)))
            labels.append(directory.name)
            facts.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    if not images:
        raise UserError(f"{folder} has no image in a folder of its class, such as {folder}/cat/1.png; put some there.")
    return Listing(images, labels, _digest(facts))


def _of_table(path: Path) -> Listing:
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            with pa.memory_map(str(path)) as file:
                table = _open_ipc(file).read_all()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); give an undamaged file.") from error
    missing = [name for name in ("image", "label") if name not in table.column_names]
    if missing or not table.num_rows:
        raise UserError(
            f"{path} needs at least one row, and the columns image and label; it has {table.num_rows} rows and "
            f"{', '.join(table.column_names) or 'no column'}."
        )
    contents = [row["bytes"] if isinstance(row, dict) else row for row in table.column("image").to_pylist()]
    for number, content in enumerate(contents):
        if not isinstance(content, bytes):
            raise UserError(
                f"{path}: row {number} of the column image holds no encoded image; write PNG or JPEG bytes."
            )
    names = _feature_names(table.schema)
    values = table.column("label").to_pylist()
    if any(value is None for value in values):
        raise UserError(f"{path}: row {values.index(None)} has no label; leave it out.")
    labels = [names[value] if names and isinstance(value, int) else str(value) for value in values]
    status = path.stat()
    images = [(content, f"row {number} of {path}") for number, content in enumerate(contents)]
    return Listing(images, labels, _digest([f"{path.name} {status.st_size} {status.st_mtime_ns}"]))


def _open_ipc(file: pa.NativeFile) -> Any:
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:  # Hugging Face writes streams
        file.seek(0)
        return pa.ipc.open_stream(file)


def _feature_names(schema: pa.Schema) -> list[str] | None:
    """Class names as Hugging Face's data sets keep them beside numbers."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None


def _digest(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
