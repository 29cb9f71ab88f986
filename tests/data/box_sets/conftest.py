"""Small sets in the layouts of COCO and VOC, on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save_image(path: Path, size: tuple[int, int] = (40, 30), shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, dtype=np.uint8)).save(path)


def annotation(part: str) -> dict:
    """Two images with three boxes, one of a crowd, and one image without; category ids with gaps."""
    images = [{"id": 10 + i, "file_name": f"{part}{i}.png", "width": 40, "height": 30} for i in range(3)]
    boxes = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 20], "iscrowd": 0},
        {"id": 2, "image_id": 12, "category_id": 90, "bbox": [0.5, 0, 39.5, 30], "iscrowd": 1},
        {"id": 3, "image_id": 12, "category_id": 90, "bbox": [5, 6, 7, 8]},
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
    return {"images": images, "annotations": boxes, "categories": categories}


@pytest.fixture
def coco(tmp_path):
    """The folder of a set whose annotations may be changed: `coco(train=change)`, each change given the mapping."""

    def make(parts=("train", "val", "test"), **changes) -> Path:
        for number, part in enumerate(parts):
            tree = annotation(part)
            for entry in tree["images"]:
                save_image(tmp_path / part / entry["file_name"], shade=100 + 20 * number)
            if part in changes:
                changes[part](tree)
            path = tmp_path / "annotations" / f"instances_{part}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(tree))
        return tmp_path

    return make


OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    """The folder of a set in which each image has the objects (name, difficult, xmin, ymin, xmax, ymax)."""

    def make(
        objects=(("cat", 0, 1, 1, 10, 20), ("dog", 1, 3, 4, 40, 30)), parts=("train", "val", "test"), size=(40, 30)
    ):
        folder = tmp_path / "VOCdevkit/VOC2012"
        for part in parts:
            stems = [f"{part}_{i}" for i in range(2)]
            for stem in stems:
                save_image(folder / f"JPEGImages/{stem}.jpg")
                path = folder / f"Annotations/{stem}.xml"
                path.parent.mkdir(exist_ok=True)
                marked = "".join(OBJECT.format(*each) for each in objects)
                shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
                path.write_text(f"<annotation>{shape}{marked}</annotation>")
            path = folder / f"ImageSets/Main/{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(stems))
        return folder

    return make
