"""Annotations of boxes, tables of classes, and masks that are wrong somewhere: a sound set, or one sentence."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import in_place
from PIL import Image

from l2t_ray.data.box_sets.coco import open_coco
from l2t_ray.data.box_sets.voc import open_voc_boxes
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.mask_sets.mask_folders import open_mask_folder
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.interfaces import UserError

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10, 0.5, 1e9, 1e400, -1e400, float("nan"), 10**30, "", "0", "1", "7", "x"),
    *("a\0b", "\udcff", "é", "../train/train0.png", "/etc/passwd", ".", "a" * 300, "a/" * 2000, "two\nlines"),
    *([], [1], [1, 2, 3, 4], [1, 2, 3], ["1", 2, 3, 4], [1, 2, float("nan"), 4], [[1, 2, 3, 4]], {}, {"id": 1}),
)
TOKENS = (
    "[" * 3000,
    "{",
    "]",
    ",",
    ":",
    '"',
    "\0",
    "\ufeff",
    "NaN",
    "9" * 5000,
    "null",
    "\\ud800",
    "<",
    "</object>",
    "&",
)
PARTS = ("train", "val", "test")


def save_image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), shade, dtype=np.uint8)).save(path)


def garbled(text: str, generator: random.Random) -> bytes:
    """A text with a token put in, a piece lost, doubled or moved, or some bytes changed."""
    a, b = sorted(generator.randrange(len(text) + 1) for _ in range(2))
    match generator.choice(("token", "cut", "lose", "double", "flip", "encode")):
        case "token":
            text = text[:a] + generator.choice(TOKENS) + text[a:]
        case "cut":
            text = text[:a]
        case "lose":
            text = text[:a] + text[min(b, a + 30) :]
        case "double":
            text = text[:b] + text[a:]
        case "flip":
            data = bytearray(text.encode())
            data[a % len(data)] ^= 1 << generator.randrange(8)
            return bytes(data)
        case "encode":
            return text.encode(generator.choice(("utf-16", "utf-8-sig", "utf-32", "utf-16-le")))
    return text.encode("utf-8", errors="surrogatepass")


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [(tree, key) for key in list(keys)] + [place for key in list(keys) for place in places(tree[key])]


def disturb(tree: Any, generator: random.Random) -> None:
    """One thing is lost, doubled, or something odd."""
    container, key = generator.choice(places(tree))
    match generator.choice(("odd", "odd", "odd", "lose", "double", "other")):
        case "odd":
            container[key] = generator.choice(ODD)
        case "lose":
            del container[key]
        case "double" if isinstance(container, list):
            container.append(container[key])
        case _:
            there, other = generator.choice(places(tree))
            container[key] = json.loads(json.dumps(there[other]))


class Coco:
    """Two images with two boxes each in three parts; one annotation file is wrong."""

    read = staticmethod(open_coco)

    def __init__(self, root: Path):
        self.root = root
        for number, part in enumerate(PARTS):
            for i in range(2):
                save_image(root / f"{part}/{part}{i}.png", 100 + 20 * number + i)
        (root / "annotations").mkdir()

    def tree(self, part: str) -> Any:
        boxes = [(0, 7, [1, 2, 10, 20]), (0, 9, [0.5, 0, 39.5, 30]), (1, 9, [5, 6, 7, 8]), (1, 7, [8, 8, 3, 3])]
        return {
            "images": [{"id": i, "file_name": f"{part}{i}.png", "width": 40, "height": 30} for i in range(2)],
            "annotations": [
                {"id": n, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": 0}
                for n, (image, kind, box) in enumerate(boxes)
            ],
            "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        }

    def spoil(self, generator: random.Random) -> str:
        spoilt = generator.choice(PARTS)
        for part in PARTS:
            tree = self.tree(part)
            if part == spoilt and generator.random() < 0.8:
                disturb(tree, generator)
            data = json.dumps(tree).encode()
            if part == spoilt and generator.random() < 0.3:
                data = garbled(data.decode(), generator)
            (self.root / f"annotations/instances_{part}.json").write_bytes(data)
        return (self.root / f"annotations/instances_{spoilt}.json").read_text(errors="replace")[:1500]


class Voc:
    """An image with two boxes in each part; an annotation, a list or the classes are wrong."""

    read = staticmethod(open_voc_boxes)
    VALUES = (
        "",
        "x",
        "-1",
        "0",
        "1",
        "1e3",
        "nan",
        "inf",
        "1_0",
        "10.5",
        "9" * 400,
        "é",
        "&amp;",
        "<b/>",
        "  3 ",
        "true",
    )

    def __init__(self, root: Path):
        self.root = root
        for name in ("Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)
        for number, part in enumerate(PARTS):
            save_image(root / f"JPEGImages/{part}.png", 100 + 20 * number)

    def spoil(self, generator: random.Random) -> str:
        (self.root / "classes.txt").write_text("cat\ndog\n")
        spoilt, what = generator.choice(PARTS), generator.choice(("xml", "value", "value", "list", "classes"))
        for part in PARTS:
            fields = {"name": "cat", "difficult": "0", "xmin": "2", "ymin": "3", "xmax": "20", "ymax": "19"}
            size = {"width": "40", "height": "30"}
            if part == spoilt and what == "value":
                chosen = generator.choice((fields, fields, size))
                chosen[generator.choice(list(chosen))] = generator.choice(self.VALUES)
            first, second = (self._object(fields | {"name": name}) for name in (fields["name"], "dog"))
            shape = "".join(f"<{key}>{value}</{key}>" for key, value in size.items())
            text = f"<annotation><size>{shape}</size>{first}{second}</annotation>"
            is_garbled = part == spoilt and what == "xml"
            data = garbled(text, generator) if is_garbled else text.encode()
            (self.root / f"Annotations/{part}.xml").write_bytes(data)
            listed = garbled(f"{part}\n", generator) if part == spoilt and what == "list" else f"{part}\n".encode()
            (self.root / f"ImageSets/Main/{part}.txt").write_bytes(listed)
        if what == "classes":
            (self.root / "classes.txt").write_bytes(garbled("cat\ndog\n", generator))
        paths = (f"Annotations/{spoilt}.xml", f"ImageSets/Main/{spoilt}.txt", "classes.txt")
        return what + "\n" + "\n".join((self.root / path).read_text(errors="replace")[:600] for path in paths)

    def _object(self, fields: dict[str, str]) -> str:
        box = "".join(f"<{key}>{fields[key]}</{key}>" for key in ("xmin", "ymin", "xmax", "ymax"))
        said = "".join(f"<{key}>{fields[key]}</{key}>" for key in ("name", "difficult"))
        return f"<object>{said}<bndbox>{box}</bndbox></object>"


class Masks:
    """An image and its mask in each part, and a table of classes or none; one mask or the table is wrong."""

    read = staticmethod(open_mask_folder)
    MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "HSV")
    TABLE = "name,r,g,b\nsky,0,0,0\nroad,128,64,128\nvoid,255,255,255\n"

    def __init__(self, root: Path):
        self.root = root
        for number, part in enumerate(("train", "validation", "test")):
            save_image(root / f"{part}/images/a.png", 100 + 20 * number)
            (root / part / "masks").mkdir()

    def spoil(self, generator: random.Random) -> str:
        kind, spoilt = generator.choice(("numbers", "names", "colours")), generator.choice(("train", "test", "table"))
        for path in self.root.glob("classes.*"):
            path.unlink()
        table = {"names": "sky\nroad\n", "colours": self.TABLE}.get(kind)
        path = self.root / ("classes.csv" if kind == "colours" else "classes.txt")
        if table is not None:
            path.write_bytes(garbled(table, generator) if spoilt == "table" else table.encode())
        said = [kind, spoilt, path.read_bytes()[:300] if path.exists() else None]
        for part in ("train", "validation", "test"):
            for mask in (self.root / part / "masks").iterdir():
                mask.unlink()
            numbers = np.tile(np.arange(2, dtype=np.uint8), (30, 20))
            image = Image.fromarray(numbers)
            if kind == "colours":
                image = Image.fromarray(np.array([(0, 0, 0), (128, 64, 128)], dtype=np.uint8)[numbers])
            if part == spoilt:
                image, what = self._odd(image, generator)
                said.append(what)
            ending = ".png"
            if part == spoilt and generator.random() < 0.3:
                ending = generator.choice((".tiff", ".gif", ".bmp", ".jpg", ".webp", ".PNG", "_mask.png"))
                said.append(ending)
            target = self.root / part / f"masks/a{ending}"
            try:
                image.save(target)
            except (OSError, ValueError, KeyError):  # that format has no such mode
                image.convert("RGB").save(target)
            if part == spoilt and generator.random() < 0.2:
                data = bytearray(target.read_bytes())
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
                target.write_bytes(data[: generator.choice((len(data), len(data) // 2, 0))])
                said.append("damaged")
        return repr(said)

    def _odd(self, image: Image.Image, generator: random.Random) -> tuple[Image.Image, str]:
        match generator.choice(("mode", "size", "value", "turned", "palette", "ignored")):
            case "mode":
                mode = generator.choice(self.MODES)
                if mode == "I;16":
                    return Image.fromarray(np.full((30, 40), generator.choice((1, 255, 256, 65535)), np.uint16)), mode
                grey = image.convert("L")
                return (grey.convert("RGB") if mode == "HSV" else grey).convert(mode), mode
            case "size":
                return image.resize(generator.choice(((30, 40), (40, 31), (1, 1), (400, 300))), 0), "size"
            case "value":
                values = np.array(image)
                values[3, 4] = generator.choice((1, 2, 7, 200, 254, 255))
                return Image.fromarray(values), "value"
            case "turned":
                exif = Image.Exif()
                exif[0x0112] = generator.choice((1, 3, 6, 8, 99))
                turned = image.copy()
                turned.info["exif"] = exif.tobytes()
                return turned, "turned"
            case "palette":
                flat = image.convert("L").convert("P")
                flat.putpalette([generator.randrange(256) for _ in range(3 * generator.choice((1, 2, 256)))])
                return flat, "palette"
            case _:
                return Image.fromarray(np.full((30, 40), 255, dtype=np.uint8)), "ignored"


def is_sound(dataset: BoxedDataset | MaskedDataset) -> bool:
    """Whether what was read is what training takes for granted."""
    for part in (dataset.train, dataset.test):
        if isinstance(dataset, MaskedDataset):
            for image, mask in part.pairs:
                strange = (mask >= len(part.class_names)) & (mask != part.ignore)
                if image.shape[1:] != mask.shape or mask.dtype != np.uint8 or strange.any():
                    return False
            continue
        for image, boxes, (height, width) in zip(part.images, part.boxes, part.sizes.tolist(), strict=True):
            x1, y1, x2, y2 = boxes.corners.T
            within = np.isfinite(boxes.corners).all() and (x1 >= 0).all() and (y1 >= 0).all()
            within = within and (x2 <= width).all() and (y2 <= height).all() and (x1 < x2).all() and (y1 < y2).all()
            labelled = (boxes.labels >= 0).all() and (boxes.labels < len(part.class_names)).all()
            if image.shape != (3, height, width) or not (within and labelled):
                return False
    return bool(np.isfinite([*dataset.mean, *dataset.std]).all())


LAYOUTS = {"COCO": Coco, "VOC": Voc, "masks": Masks}


def try_layout(tally, root: Path, name: str, number: int, seed: int) -> None:
    layout, generator = LAYOUTS[name](root), random.Random(seed)
    for _ in range(number):
        case = layout.spoil(generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, seen = in_place(lambda: layout.read(root), is_sound, refusals=(UserError,))
        tally.add(f"{name} {case}", verdict, seen)


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_damage_to_annotations_and_masks(tally, tmp_path, name):
    counted = tally(f"{name}: annotations, tables and masks")
    try_layout(counted, tmp_path, name, number=40, seed=0)
    counted.check(at_least=40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_damage_to_annotations_and_masks_at_length(tally, tmp_path, name):
    counted = tally(f"{name}: annotations, tables and masks")
    try_layout(counted, tmp_path, name, number=1_500, seed=1)
    counted.check(at_least=1_500)
