"""Files with bytes changed, cut or inserted at random: right pixels, or one sentence that names the file.

Each case runs in a child process, for what may go wrong in a decoder is the end of the process. Formats with checksums
(PNG, and what is converted) must give the pixels of the undamaged file or be refused; without checksums a change may be
seen as other pixels, and then Pillow's own answer is the right one. Labels in a table have no checksum either.
"""

import io
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from l2t_ray.data.catalog import load
from l2t_ray.data.pictures import Picture, agree, look_at, pixels_of
from l2t_ray.interfaces import UserError

ENDS = ("right", "refused", "traceback", "wrong")
ARRAYS = np.random.default_rng(1).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
SECONDS = 20


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
    return buffer.getvalue()


def mutated(content, random):
    """One change at a random place, or a few."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        at, length = int(random.integers(0, len(content) + 1)), int(random.integers(1, 40))
        match random.integers(0, 7):
            case 0 | 1 | 2:
                content[at : at + 1] = random.bytes(1)
            case 3:
                del content[at:]
            case 4:
                del content[at : at + length]
            case 5:
                content[at:at] = random.bytes(length)
            case 6:
                content[at : at + length] = bytes(len(content[at : at + length]))
    return bytes(content)


def of_image(kind, content):
    """Reads the changed bytes as the first image of a set of two."""
    pictures = [Picture(content, "the image"), Picture(encoded(ARRAYS[1], "PNG"), "another")]
    reading, _ = agree([look_at(picture) for picture in pictures])
    pixels, _ = pixels_of(pictures[0], reading, None)
    if kind == "PNG":
        return np.array_equal(pixels.transpose(1, 2, 0), ARRAYS[0])
    with Image.open(io.BytesIO(content)) as image:
        if image.has_transparency_data or image.mode[0] in "IF" or image.getexif().get(0x0112, 1) != 1:
            return pixels.shape[0] == 3
        return np.array_equal(pixels.transpose(1, 2, 0), np.asarray(image.convert("RGB")))


def of_root(root):
    """Opens the folder of a set of which one file was changed."""
    images = load("folder", root=root).train.images.transpose(0, 2, 3, 1)
    return len(images) > 0 and all((image == ARRAYS).all(axis=(1, 2, 3)).any() for image in images)


def write_table(path):
    images = [{"bytes": encoded(array, "PNG"), "path": None} for array in ARRAYS]
    table = pa.table({"image": images, "label": ["cat", "dog", "emu"] * 2})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def case_of_image(kind):
    content = encoded(ARRAYS[0], kind)
    return content, lambda changed, root: of_image(kind, changed), "the image"


def case_of_table(root, suffix):
    for part in ("train", "test"):
        write_table(root / f"{part}{suffix}")
    content = (root / f"train{suffix}").read_bytes()

    def read(changed, copy):
        (copy / f"train{suffix}").write_bytes(changed)
        return of_root(copy)

    return content, read, f"train{suffix}"


def case_of_converted(root, *, is_alone):
    """The Arrow file that was made of own images, with them or (CIFAR's way of a bare machine) by itself."""
    for part in ("train", "test"):
        write_table(root / f"{part}.parquet")
    load("folder", root=root)
    (path,) = (root / "arrow").glob("*-train.arrow")
    content = path.read_bytes()

    def read(changed, copy):
        changed_path = copy / "arrow" / path.name
        changed_path.write_bytes(changed)
        if not is_alone:
            return of_root(copy)
        from l2t_ray.data.arrow import read_images

        return np.array_equal(read_images(changed_path).images.transpose(0, 2, 3, 1), ARRAYS)

    return content, read, path.name


CASES = {
    **{kind: lambda root, kind=kind: case_of_image(kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")},
    "parquet": lambda root: case_of_table(root, ".parquet"),
    "arrow": lambda root: case_of_table(root, ".arrow"),
    "converted": lambda root: case_of_converted(root, is_alone=False),
    "converted, alone": lambda root: case_of_converted(root, is_alone=True),
}


def ends_of(read, cases, fresh, name):
    """How reading each of the changed contents ends: in a child process, and in a new one after each that it ends."""
    ends = []
    while len(ends) < len(cases):
        told, tells = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff speaks of what it finds
                warnings.simplefilter("ignore")
                for changed in cases[len(ends) :]:
                    signal.alarm(SECONDS)
                    os.write(tells, bytes([end_of(read, changed, fresh(), name)]))
            finally:
                os._exit(0)
        os.close(tells)
        with os.fdopen(told, "rb") as pipe:
            ends += [ENDS[end] for end in pipe.read()]
        _, status = os.waitpid(pid, 0)
        if len(ends) < len(cases):
            ends.append("hang" if os.WTERMSIG(status) == signal.SIGALRM else "death")
    return ends


def end_of(read, changed, root, name):
    try:
        return 0 if read(changed, root) else 3
    except UserError as error:
        return 1 if name in str(error) and "\n" not in str(error) else 2
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 2


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_end_well(tmp_path, kind, count):
    whole = tmp_path / "whole"
    whole.mkdir()
    content, read, name = CASES[kind](whole)

    def fresh():
        return Path(shutil.copytree(whole, tmp_path / "copy", dirs_exist_ok=True))

    random = np.random.default_rng(0)
    cases = [content, *(mutated(content, random) for _ in range(count))]
    undamaged, *ends = ends_of(read, cases, fresh, name)
    assert undamaged == "right"
    numbers = Counter(ends)
    print(f"| {kind} | {count} | " + " | ".join(str(numbers[end]) for end in (*ENDS, "hang", "death")) + " |")
    assert numbers["right"] + numbers["refused"] == count, [
        (case, end) for case, end in enumerate(ends) if end not in ("right", "refused")
    ]
