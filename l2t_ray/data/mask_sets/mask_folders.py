"""A user's own images with masks, in folders.

Below a root folder, for each of `train`, `test` and, if there is one, `validation`:

    train/images/*.jpg    any format of `pictures.FORMATS`
    train/masks/*.png     under the same names: class numbers (255: ignored), a palette, or colours

and beside them `classes.csv`, a line `name,r,g,b` for each class (`void` for what is ignored), or `classes.txt`, a name
a line in the order of the class numbers.
"""

from collections.abc import Hashable
from pathlib import Path

from l2t_ray.data.converted import stamps, stamps_below
from l2t_ray.data.mask_sets.coding import classes_below
from l2t_ray.data.mask_sets.mask_files import MaskFile, open_files
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.own_folders import SUFFIXES, UNREADABLE
from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError

_PARTS = ("train", "validation", "test")
_ENDINGS = ("_mask", "_label", "_labels", "_gtfine_labelids", "_l", "_segmentation")
"""What mask files may have after the name of their image, in lower case."""


def open_mask_folder(root: Path) -> MaskedDataset:
    """
    Raises:
        UserError: if a part is absent, an image has no mask, or the files do not fit one another.
    """
    files = {}
    for part in _PARTS:
        folder = root / part
        if folder.is_dir() or part != "validation":
            files[part] = _pairs(root, folder)
    classes = classes_below(root)
    return open_files("mask_folder", files, classes.names, classes.coding)


def state(root: Path) -> Hashable:
    """Of all files that decide what `open_mask_folder` gives: another value, another set."""
    tables = stamps([root / name for name in ("classes.csv", "classes.txt")])
    return tables, stamps_below(root / part / kind for part in _PARTS for kind in ("images", "masks"))


def _pairs(root: Path, folder: Path) -> list[MaskFile]:
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise UserError(
                f"data.name=mask_folder, but {shown(root)} has no {folder.name}/{name}; put images into "
                f"{folder.name}/images and their masks into {folder.name}/masks."
            )
    images, masks = _files(folder / "images"), _files(folder / "masks")
    pairs = []
    for stem, image in images.items():
        found = [masks[name] for name in (stem, *(stem + ending for ending in _ENDINGS)) if name in masks]
        if not found:
            raise UserError(
                f"{shown(image)} has no mask; expected {shown(folder / 'masks' / image.stem)}.png, or take it out."
            )
        if len(found) > 1:
            raise UserError(f"{shown(image)} has two masks, {found[0].name} and {found[1].name}; leave one there.")
        pairs.append(MaskFile(image, found[0]))
    if len(pairs) < len(masks):
        used = {pair.mask for pair in pairs}
        lonely = next(path for path in masks.values() if path not in used)
        raise UserError(
            f"{shown(lonely)} is the mask of no image in {shown(folder / 'images')}; add it or take it out."
        )
    if not pairs:
        raise UserError(f"{shown(folder / 'images')} holds no image; put some there.")
    return pairs


def _files(folder: Path) -> dict[str, Path]:
    """Image files below the folder by their path in it, without ending, in lower case; sorted."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            if UNREADABLE.search(path.name):
                raise UserError(f"{shown(path)} is of a format that is not read; convert it to PNG, or take it out.")
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix().lower()
        if stem in files:
            raise UserError(f"{shown(files[stem])} and {shown(path)} have one name; rename one of them.")
        files[stem] = path
    return files
