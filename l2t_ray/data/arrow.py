"""Images in an Arrow IPC file: written once, then memory-mapped by every worker of a machine without a copy.

The file has one record batch with the columns `image` (fixed-size binary, c * h * w bytes), `label` and `position`
(int64), and metadata under `l2t_ray`: format version, shape, class names, source, a sha256 of the three columns, and
one of the metadata itself (files of earlier versions have none).
"""

import contextlib
import hashlib
import json
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8

from l2t_ray.files import replaced
from l2t_ray.interfaces import UserError

FORMAT = 1
_KEY = b"l2t_ray"
_MAGIC = b"ARROW1"


class DamagedError(UserError):
    """An image file cannot be what was written. `what` says so; where its source is there, it can be made anew."""

    def __init__(self, what: str):
        super().__init__(f"{what}; delete it and run again, and it is made anew from its source.")
        self.what = what


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, read-only when they come from a file.

    `positions` are the places of the rows in the set as published, which differ from the row numbers where a copy
    lacks images. `source` tells where the images came from. `names` are paths below a user's own folder.
    """

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def height(self) -> int:
        return self.images.shape[2]


def write_images(
    path: Path,
    images: UInt8[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, " n"],
    *,
    class_names: Sequence[str],
    source: Mapping[str, Any],
    positions: Int[np.ndarray, " n"] | None = None,
) -> None:
    """Writes `path` in one piece: readers see the old file or the whole new one, also with several writers.

    Args:
        path: the file to write; its folder is made where needed.
        images: pixels 0..255.
        labels: class of each image, an index into `class_names`.
        class_names: one name a class.
        source: where the images came from, as JSON can hold it.
        positions: places in the published set; the row numbers where left out.

    Raises:
        ValueError: if there is no image, or a label has no class name.
        OSError: if the folder cannot be written.
    """
    n, *shape = images.shape
    if n == 0:
        raise ValueError(f"{path}: there is no image to write.")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"{path}: labels run from {labels.min()} to {labels.max()}, but there are {len(class_names)} class names."
        )
    if positions is None:
        positions = np.arange(n)
    arrays = (
        np.ascontiguousarray(images),
        np.ascontiguousarray(labels, dtype=np.int64),
        np.ascontiguousarray(positions, dtype=np.int64),
    )
    facts = {
        "format": FORMAT,
        "shape": [n, *shape],
        "class_names": list(class_names),
        "source": dict(source),
        "sha256": _sha256(*arrays),
    }
    facts["facts_sha256"] = _sha256_of_facts(facts)
    schema = pa.schema(
        [("image", pa.binary(int(np.prod(shape)))), ("label", pa.int64()), ("position", pa.int64())],
        metadata={_KEY: json.dumps(facts).encode()},
    )
    columns = [
        pa.Array.from_buffers(column.type, n, [None, pa.py_buffer(array)])
        for column, array in zip(schema, arrays, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replaced(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(pa.record_batch(columns, schema=schema))


def read_source(path: Path) -> Mapping[str, Any]:
    """The `source` that `path` was written with, without a look at its images. Raises like `read_images`."""
    with _naming_the_damaged(path), _mapped(path) as file:
        return _facts(pa.ipc.open_file(file).schema)["source"]


def read_images(path: Path, *, check: bool = True) -> ImageSet:
    """Maps the images of `path` into memory; nothing is copied, and processes on one machine share the pages.

    A damaged file is refused. One that is cut short while it is mapped is beyond that: the system then ends the
    process (SIGBUS) when it looks at a page that is gone. `write_images` never does so; it puts a new file in place.

    Args:
        path: a file from `write_images`.
        check: compare the content with the sha256 in the file, which reads all of it once.

    Raises:
        UserError: if the file is absent.
        DamagedError: if it is truncated, damaged, or of another format version.
    """
    if not path.exists():
        raise UserError(f"There is no image file {path}.")
    with _naming_the_damaged(path):
        # The mapping stays open as long as an array looks into it: NumPy holds the buffer, the buffer the file.
        reader = pa.ipc.open_file(_mapped(path))
        facts = _facts(reader.schema)
        batch = reader.get_batch(0)
        batch.validate(full=True)  # offsets and lengths of a damaged file may point anywhere
        images, labels, positions = (
            np.frombuffer(column.buffers()[1], dtype)
            for column, dtype in zip(batch.columns, (np.uint8, np.int64, np.int64), strict=True)
        )
        n, *shape = facts["shape"]
        size = int(np.prod(shape))
        # Arrow pads its buffers, hence the cuts.
        images, labels, positions = images[: n * size].reshape(n, *shape), labels[:n], positions[:n]
        if check and _sha256(images, labels, positions) != facts["sha256"]:
            raise ValueError("the content does not match its sha256")
        return ImageSet(images, labels, positions, tuple(facts["class_names"]), facts["source"])


@contextlib.contextmanager
def _naming_the_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # What lies in a damaged file can raise nearly anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"The image file {path} is damaged or of another version ({reason})") from error


def _mapped(path: Path) -> pa.MemoryMappedFile:
    """The file in memory, once its two ends and its length are those of a whole Arrow file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, status.st_size - len(_MAGIC) - 4))
        tail = file.read()
    if head != _MAGIC or tail[4:] != _MAGIC:
        raise ValueError(f"its {status.st_size} bytes do not begin and end as an Arrow file does")
    (footer,) = struct.unpack("<i", tail[:4])
    if not 0 < footer <= status.st_size - 2 * len(_MAGIC) - 4:
        raise ValueError(f"its footer has {footer} bytes, the file {status.st_size}")
    return pa.memory_map(str(path))


def _facts(schema: pa.Schema) -> dict[str, Any]:
    facts = json.loads((schema.metadata or {})[_KEY])
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, expected {FORMAT}")
    if facts.get("facts_sha256", expected := _sha256_of_facts(facts)) != expected:
        raise ValueError("the metadata does not match its sha256")
    return facts


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()


def _sha256_of_facts(facts: Mapping[str, Any]) -> str:
    told = {key: value for key, value in facts.items() if key != "facts_sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
