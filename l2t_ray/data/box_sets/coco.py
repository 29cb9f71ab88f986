"""Sets in the layout of COCO: `annotations/instances_PART.json`, and the images of each part in a folder of its name.

PART begins with `train`, `val` or `test` (train2017). Where there are all three, `val` is the validation part; where
there are two, the second one is the test part, and validation images are chosen among the training images.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2t_ray.data.box_sets.box_files import BoxFile, open_files
from l2t_ray.data.boxed_sets import BoxedDataset, Boxes
from l2t_ray.data.listed_files import check_class_name, folder_with, is_file
from l2t_ray.data.own_folders import SUFFIXES
from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError


def open_coco(root: Path, *, annotations: str = "instances") -> BoxedDataset:
    """COCO, or somebody's own set in its layout, below `root` or `root/coco`.

    Args:
        annotations: what the names of the annotation files begin with, such as `person_keypoints`.

    Raises:
        UserError: if files are absent or damaged, or do not fit one another.
    """
    return _open("coco", folder_with(root, "coco", ["coco", "."], "annotations"), annotations)


def open_bccd(root: Path) -> BoxedDataset:
    """Blood cells of three classes (BCCD) in the layout of COCO, below `root` or `root/bccd`.

    Raises:
        UserError: if files are absent or damaged, or do not fit one another.
    """
    return _open("bccd", folder_with(root, "bccd", ["bccd", "BCCD", "."], "annotations"), "instances")


def _open(name: str, folder: Path, prefix: str) -> BoxedDataset:
    parts = {part: _Annotation.read(path) for part, path in _part_files(name, folder, prefix).items()}
    names = _class_names(list(parts.values()))
    numbers = {name: number for number, name in enumerate(names)}
    files, notes = {}, []
    for part, annotation in parts.items():
        where = _image_folder(folder, annotation.path, prefix)
        files[part] = annotation.files(where, numbers)
        listed = {file.image.resolve() for file in files[part]}
        there = [path for path in sorted(where.rglob("*")) if path.suffix.lower() in SUFFIXES]
        # Images of several parts may share a folder, and then those of the others are no odd ones.
        if where.name.startswith(("train", "val", "test")) and (
            lonely := [path for path in there if path.resolve() not in listed]
        ):
            more = f" ({lonely[0].name}, ...)" if lonely[1:] else f" ({lonely[0].name})"
            notes.append(f"{len(lonely)} images of {shown(where)}{more} left out: {annotation.path.name} lacks them")
    return open_files(name, files, names, notes)


def _part_files(name: str, folder: Path, prefix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for part in ("train", "val", "test"):
        paths = sorted((folder / "annotations").glob(f"{prefix}_{part}*.json"))
        if len(paths) > 1:
            raise UserError(
                f"{shown(folder / 'annotations')} has {paths[0].name} and {paths[1].name} for one part; leave one "
                "there."
            )
        if paths:
            found[part] = paths[0]
    if "train" not in found or len(found) < 2:
        absent = "train" if "train" not in found else "val"
        raise UserError(
            f"data.name={name}, but {shown(folder / 'annotations')} has no {prefix}_{absent}*.json; put it there."
        )
    if len(found) == 3:
        return {"train": found["train"], "validation": found["val"], "test": found["test"]}
    return {"train": found["train"], "test": found["val"] if "val" in found else found["test"]}


def _image_folder(folder: Path, annotation: Path, prefix: str) -> Path:
    part = annotation.stem.removeprefix(f"{prefix}_")
    places = [folder / part, folder / "images" / part, folder / "images"]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise UserError(f"{shown(folder)} has no folder {part} with the images of {annotation.name}; put them there.")


class _Annotation(NamedTuple):
    """What a file says, looked at only so far that its parts are what they should be."""

    path: Path
    classes: Mapping[int, str]
    """By category id, which may have gaps."""
    images: Mapping[int, Mapping[str, Any]]
    boxes: Mapping[int, Sequence[Mapping[str, Any]]]
    """By the id of their image."""

    @classmethod
    def read(cls, path: Path) -> "_Annotation":
        tree = _tree(path)
        classes: dict[int, str] = {}
        for entry in _entries(tree, "categories", path):
            number, name = _id(entry, "id", "categories", path), entry.get("name")
            if name is None or name == "":
                raise UserError(f"{shown(path)}: the category {number} has no name; give it one.")
            check_class_name(name, path)
            if number in classes or name in classes.values():
                raise UserError(f"{shown(path)} has the category {number} ({name!r}) twice; leave one there.")
            classes[number] = name
        images: dict[int, Mapping[str, Any]] = {}
        for entry in _entries(tree, "images", path):
            number = _id(entry, "id", "images", path)
            if number in images:
                raise UserError(f"{shown(path)} has two images with the id {number}; give each its own.")
            images[number] = entry
        if not images:
            raise UserError(f"{shown(path)} lists no image; add some.")
        boxes: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in _entries(tree, "annotations", path):
            image = _id(entry, "image_id", "annotations", path)
            category = _id(entry, "category_id", "annotations", path)
            if image not in images:
                raise UserError(
                    f"{shown(path)}: {_named(entry)} is on the image {image}, which is not listed; add the image or "
                    "take the annotation out."
                )
            if category not in classes:
                raise UserError(
                    f"{shown(path)}: {_named(entry)} is of the category {category}, which is not listed; add it to "
                    "categories or correct the annotation."
                )
            boxes[image].append(entry)
        return cls(path, classes, images, boxes)

    def files(self, folder: Path, numbers: Mapping[str, int]) -> list[BoxFile]:
        files, seen = [], set()
        for image, entry in self.images.items():
            name = entry.get("file_name")
            if not isinstance(name, str) or not name:
                raise UserError(f"{shown(self.path)}: the image {image} has no file_name; add it.")
            path = folder / name
            if not is_file(path):
                raise UserError(
                    f"{shown(self.path)} lists {shown(Path(name))}, which is not in {shown(folder)}; add the file, or "
                    "take the image and its annotations out."
                )
            if path in seen:
                raise UserError(
                    f"{shown(self.path)} lists {shown(Path(name))} twice; leave one of the two images there."
                )
            seen.add(path)
            entries = self.boxes.get(image, ())
            boxes = Boxes.of(
                [_corners(box, self.path) for box in entries],
                [numbers[self.classes[box["category_id"]]] for box in entries],
                [_is_crowd(box, self.path) for box in entries],
            )
            files.append(BoxFile(path, boxes, self._size(image, entry), shown(self.path)))
        return files

    def _size(self, image: int, entry: Mapping[str, Any]) -> tuple[int, int] | None:
        height, width = entry.get("height"), entry.get("width")
        if height is None and width is None:
            return None
        if not (isinstance(height, int) and isinstance(width, int)):
            raise UserError(
                f"{shown(self.path)}: the image {image} has the height {height!r} and the width {width!r}; give whole "
                "numbers, or leave both out."
            )
        return height, width


def _tree(path: Path) -> Mapping[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{shown(path)} cannot be read as JSON ({reason}); mend it or copy it anew.") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{shown(path)} holds a {type(tree).__name__}, where a mapping of images, annotations and categories is "
            "expected; save it in the layout of COCO."
        )
    return tree


def _entries(tree: Mapping[str, Any], key: str, path: Path) -> Sequence[Mapping[str, Any]]:
    entries = tree.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{shown(path)} has no list of {key}, each a mapping; save it in the layout of COCO.")
    return entries


def _id(entry: Mapping[str, Any], key: str, where: str, path: Path) -> int:
    value = entry.get(key)
    if type(value) is not int:
        raise UserError(f"{shown(path)}: an entry of {where} has the {key} {value!r}; give a whole number.")
    return value


def _corners(entry: Mapping[str, Any], path: Path) -> list[float]:
    """From x, y, width and height. A negative width or height leaves no area."""
    box = entry.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value) for value in box)
    ):
        raise UserError(f"{shown(path)}: {_named(entry)} has the bbox {box!r}; give x, y, width and height in pixels.")
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _is_crowd(entry: Mapping[str, Any], path: Path) -> bool:
    value = entry.get("iscrowd", 0)
    if not isinstance(value, int) or value not in (0, 1):
        raise UserError(f"{shown(path)}: {_named(entry)} has the iscrowd {value!r}; give 0 or 1, or leave it out.")
    return bool(value)


def _named(entry: Mapping[str, Any]) -> str:
    return f"the annotation {entry['id']!r}" if "id" in entry else "an annotation without id"


def _class_names(annotations: Sequence[_Annotation]) -> tuple[str, ...]:
    """Of the training part, in the order of their ids. Other parts may lack some, but have no others.

    Raises:
        UserError: if another part has a class that the training part does not name, or under another id.
    """
    train = annotations[0]
    for other in annotations[1:]:
        for number, name in other.classes.items():
            if train.classes.get(number) != name:
                raise UserError(
                    f"{shown(other.path)} has the category {number} as {name!r}, and {shown(train.path)} "
                    f"{'has it as ' + repr(train.classes[number]) if number in train.classes else 'does not have it'}; "
                    "give both the same categories."
                )
    if not train.classes:
        raise UserError(f"{shown(train.path)} lists no category; add them.")
    return tuple(train.classes[number] for number in sorted(train.classes))
