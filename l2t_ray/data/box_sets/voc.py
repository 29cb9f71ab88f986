"""Sets in the layout of PASCAL VOC: `ImageSets/Main/*.txt` list images, `Annotations/*.xml` have their boxes.

Trained on `train.txt`. Where there are `val.txt` and `test.txt`, the former is the validation part; where there is one
of them, it is the test part, and validation images are chosen among the training images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from l2t_ray.data.box_sets.box_files import BoxFile, open_files
from l2t_ray.data.boxed_sets import BoxedDataset, Boxes
from l2t_ray.data.listed_files import check_class_name, existing, folder_with, is_file, lines_of
from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class _Marked(NamedTuple):
    """An image and what is marked on it, with the names of the classes."""

    image: Path
    annotation: Path
    corners: Sequence[Sequence[float]]
    names: Sequence[str]
    is_hard: Sequence[bool]
    size: tuple[int, int] | None


def open_voc_boxes(root: Path, *, year: int = 2012) -> BoxedDataset:
    """PASCAL VOC, or somebody's own set in its layout, below `root/VOCdevkit/VOC<year>`, `root/VOC<year>` or `root`.

    Objects that are marked as difficult count as crowds do: they are neither to be found nor background. Classes are
    those of `classes.txt` beside the annotations, or VOC's 20, or, where no box has one of these, all that there are.

    Raises:
        UserError: if files are absent or damaged, or do not fit one another.
    """
    folder = folder_with(root, "voc_boxes", [f"VOCdevkit/VOC{year}", f"VOC{year}", "."], "ImageSets/Main")
    lists = folder / "ImageSets/Main"
    others = [part for part in ("val", "test") if (lists / f"{part}.txt").exists()] or ["val"]
    of_part = {"train": "train", "test": others[-1]} | ({"validation": "val"} if len(others) == 2 else {})
    marked = {part: [_marked(folder, lists / f"{name}.txt", line) for line in lines_of(lists / f"{name}.txt")]
              for part, name in of_part.items()}  # fmt: skip
    names = _class_names(folder, marked["train"])
    files = {part: [_numbered(each, names, folder) for each in listed] for part, listed in marked.items()}
    return open_files("voc_boxes", files, names)


def _marked(folder: Path, listed: Path, line: str) -> _Marked:
    stem = line.split()[0]
    path = existing(folder / f"Annotations/{stem}.xml", listed)
    image = next(
        (place for ending in (".jpg", ".jpeg", ".png") if is_file(place := folder / f"JPEGImages/{stem}{ending}")),
        folder / f"JPEGImages/{stem}.jpg",
    )
    existing(image, listed)
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{shown(path)} cannot be read as XML ({error}); mend it or copy it anew.") from None
    corners, names, is_hard = [], [], []
    for entry in tree.iter("object"):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{shown(path)} has an object without a name; give it its class, or take it out.")
        check_class_name(name, path)
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
        corners.append([x1 - 1, y1 - 1, x2, y2])  # VOC counts pixels from 1, and the last one belongs to the box
        names.append(name)
        is_hard.append((entry.findtext("difficult") or "").strip() == "1")
    return _Marked(image, path, corners, names, is_hard, _size(tree, path))


def _number(entry: ElementTree.Element, key: str, path: Path) -> float:
    text = (entry.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise UserError(f"{shown(path)} has {key} {text!r}; give a number of pixels.")
    return value


def _size(tree: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    """None where nobody filled it in: several programs write 0."""
    if tree.find("size/height") is None or tree.find("size/width") is None:
        return None
    height, width = int(_number(tree, "size/height", path)), int(_number(tree, "size/width", path))
    return (height, width) if height and width else None


def _class_names(folder: Path, train: Sequence[_Marked]) -> tuple[str, ...]:
    table = folder / "classes.txt"
    if table.exists():
        names = lines_of(table)
        for name in names:
            check_class_name(name, table)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{shown(table)} names the class {twice!r} twice; give each a name of its own.")
        return tuple(names)
    present = {name for each in train for name in each.names}
    return tuple(sorted(present)) if present.isdisjoint(VOC_CLASSES) else VOC_CLASSES


def _numbered(marked: _Marked, names: Sequence[str], folder: Path) -> BoxFile:
    if strange := next((name for name in marked.names if name not in names), None):
        known = ", ".join(names[:20]) + (", ..." if names[20:] else "")
        raise UserError(
            f"{shown(marked.annotation)} has the class {strange!r}, which is none of {known}; correct it, or name all "
            f"classes, one a line, in {shown(folder / 'classes.txt')}."
        )
    boxes = Boxes.of(marked.corners, [names.index(name) for name in marked.names], marked.is_hard)
    return BoxFile(marked.image, boxes, marked.size, shown(marked.annotation))
