"""A user's own images: folders of image files, or tables with the encoded images in a column.

Below a root folder, for each of `train`, `test` and, if there is one, `validation`:

    train/<class>/*.png      one folder a class, any format of `pictures.FORMATS` (torchvision's ImageFolder layout), or
    train.parquet            (or train.arrow) with columns `image` (encoded bytes, or Hugging Face's struct with
                             `bytes`) and `label` (class names, or numbers)

`validation` holds images whose labels are known to be right; where it is absent, they are chosen among the training
images. Everything is decoded once, into the same Arrow files as any other set. What was converted or left out stands
in the set's `notes`.
"""

import hashlib
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from rich.progress import track

from l2t_ray.data import own_folders, own_tables, pictures
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.converted import arrow_paths, cache_directory, keep, open_current, stamp, stamps, warn_of
from l2t_ray.data.dataset import Dataset, pixel_statistics
from l2t_ray.data.lock import one_at_a_time
from l2t_ray.data.own_listing import Listing
from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError

PARTS = ("train", "validation", "test")
MISTAKEN = ("val", "valid", "dev")
"""Names under which people keep validation images; ImageNet's `val` is what others test on, so they are not guessed."""
VERSION = 1
"""Of the way from files to pixels: a change makes converted images be made anew."""


class _Part(NamedTuple):
    """Where a part lies, what tells it from another one, and how it is read."""

    path: Path
    fingerprint: str
    listing: Callable[[], Listing]


def open_own(root: Path, image_size: int | None) -> Dataset:
    """The images below `root`, all of one size; see `catalog.load`.

    Raises:
        UserError: if images are absent, of several sizes, or something about them is not clear.
    """
    paths = _arrow_paths(root, image_size)
    parts = _parts(root)
    fingerprint = _together(parts)

    def is_current(source: Mapping[str, Any]) -> bool:
        return source.get("version") == VERSION and source.get("fingerprint") == fingerprint

    def opened(is_last_look: bool = False) -> tuple[ImageSet, ImageSet] | None:
        (train, damage), (test, more_damage) = (open_current(paths[part], is_current) for part in ("train", "test"))
        if train is not None and test is not None:
            return train, test
        if is_last_look:
            warn_of(damage or more_damage)
        return None

    if (both := opened()) is None:
        with one_at_a_time(
            cache_directory() / "locks", f"{_name(root)}.lock", doing=f"converting the images below {root}"
        ):
            if (both := opened(is_last_look=True)) is None:
                both = _converted(root, parts, image_size, paths, fingerprint)
    train, test = (replace(images, names=images.source["names"]) for images in both)
    facts = train.source
    num_own = facts["num_own"]
    validation = np.arange(num_own, len(train)) if num_own < len(train) else None
    return Dataset("folder", train, test, tuple(facts["mean"]), tuple(facts["std"]), validation, tuple(facts["notes"]))


def state(root: Path, image_size: int | None) -> Hashable:
    """What `open_own` depends on: another value, another set."""
    arrows = [path for paths in _arrow_paths(root, image_size).values() for path in paths]
    return _together(_parts(root)), stamps(arrows)


# --- Which parts there are --------------------------------------------------------------------------------------------


def _parts(root: Path) -> dict[str, _Part]:
    found = {part: there for part in PARTS if (there := _part(root, part)) is not None}
    for part in ("train", "test"):
        if part not in found:
            raise UserError(
                f"data.name=folder, but {shown(root)} has neither {part}/<class>/*.png nor {part}.parquet; "
                "set data.root to the folder that has them."
            )
    return found


def _part(root: Path, part: str) -> _Part | None:
    there = [path for path in (root / part, root / f"{part}.parquet", root / f"{part}.arrow") if path.exists()]
    if len(there) > 1:
        raise UserError(f"{shown(root)} has both {there[0].name} and {there[1].name}; leave one of them there.")
    if not there:
        return None
    (path,) = there
    if path.suffix:
        fact = b"%d %d %d" % tuple(stamp(path.stat()))
        return _Part(path, _digest([path.name.encode(), fact]), lambda: own_tables.listing_of(path))
    if not path.is_dir():
        raise UserError(f"{shown(path)} is no folder; put a folder for each class below it.")
    found = own_folders.find(path)
    return _Part(path, _digest(found.facts), lambda: own_folders.listing_of(path, found))


def _together(parts: Mapping[str, _Part]) -> str:
    # What one part holds decides how the others are read: one colour image makes all of them colour.
    return _digest([f"{name} {part.fingerprint}".encode() for name, part in parts.items()])


def _digest(facts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(facts)).hexdigest()  # no name has a zero in it


def _name(root: Path) -> str:
    """A name of its own for each root: the cache is shared by all of a user's."""
    return f"folder-{hashlib.sha256(bytes(root.resolve())).hexdigest()[:8]}"


def _arrow_paths(root: Path, image_size: int | None) -> dict[str, list[Path]]:
    size = "" if image_size is None else f"-{image_size}x{image_size}"
    return {part: arrow_paths(root, f"{_name(root)}-{part}{size}") for part in ("train", "test")}


# --- From files to images ---------------------------------------------------------------------------------------------


def _converted(
    root: Path,
    parts: Mapping[str, _Part],
    image_size: int | None,
    paths: Mapping[str, Sequence[Path]],
    fingerprint: str,
) -> tuple[ImageSet, ImageSet]:
    listings = {name: part.listing() for name, part in parts.items()}
    class_names = _class_names(listings, {name: part.path for name, part in parts.items()})
    looks = [pictures.look_at(picture) for listing in listings.values() for picture in listing.pictures]
    reading, notes = pictures.agree(looks)
    done: Counter[str] = Counter()
    images = {
        name: _decoded(listing, reading, image_size, f"{name} images", done) for name, listing in listings.items()
    }
    _check_one_size(root, images)
    mean, std = pixel_statistics(images["train"])
    notes = [
        *(note for listing in listings.values() for note in listing.notes),
        *notes,
        *(f"{count} of {len(looks)} images {what}" for what, count in sorted(done.items())),
        *_notes_on_parts(root, listings),
    ]
    source = {
        "name": "folder",
        "version": VERSION,
        "fingerprint": fingerprint,
        "num_own": len(images["train"]),
        "mean": mean,
        "std": [max(value, 1 / 255) for value in std],  # images of one colour have nothing to be scaled by
        "notes": notes,
    }
    train, test = ([name for name in listings if (name == "test") == is_test] for is_test in (False, True))
    return tuple(  # pyright: ignore[reportReturnType]
        keep(
            _image_set(names, images, listings, class_names, source | _file_names(root, names, listings)),
            paths[names[0]],
        )
        for names in (train, test)
    )


def _image_set(
    names: Sequence[str],
    images: Mapping[str, np.ndarray],
    listings: Mapping[str, Listing],
    class_names: tuple[str, ...],
    source: Mapping[str, Any],
) -> ImageSet:
    """One set of the parts of these names, one after the other."""
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[label] for name in names for label in listings[name].labels]
    starts = np.cumsum([0, *(listings[name].num_rows for name in names)])
    positions = [start + listings[name].positions for start, name in zip(starts, names, strict=False)]
    pixels = images[names[0]] if len(names) == 1 else np.concatenate([images[name] for name in names])
    return ImageSet(pixels, np.array(labels, dtype=np.int64), np.concatenate(positions), class_names, source)


def _file_names(root: Path, names: Sequence[str], listings: Mapping[str, Listing]) -> dict[str, list[str] | None]:
    """Each image's path below the root, with `/` between; None where the images of the first part lie in a table."""
    contents = [picture.content for name in names for picture in listings[name].pictures]
    if not isinstance(contents[0], Path):
        return {"names": None}
    return {"names": [path.relative_to(root).as_posix() if isinstance(path, Path) else "" for path in contents]}


def _decoded(
    listing: Listing, reading: pictures.Reading, image_size: int | None, what: str, done: Counter[str]
) -> UInt8[np.ndarray, "n c h w"]:
    """All pictures as one array; what was done to them is counted in `done`."""
    images = None
    for number, picture in enumerate(
        track(listing.pictures, description=f"reading {what}", transient=True, disable=not sys.stdout.isatty())
    ):
        pixels, changes = pictures.pixels_of(picture, reading, image_size)
        done.update(changes)
        if images is None:
            images = np.empty((len(listing.pictures), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"{picture.where} has {pixels.shape[2]}x{pixels.shape[1]} pixels, the image before it another size; "
                "set data.image_size=32, or another size that all are scaled to."
            )
        images[number] = pixels
    assert images is not None
    return images


def _check_one_size(root: Path, images: Mapping[str, np.ndarray]) -> None:
    shapes = {part: pixels.shape[2:] for part, pixels in images.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{part} {height}x{width}" for part, (height, width) in shapes.items())
        raise UserError(
            f"The images below {shown(root)} are of several sizes ({listed}); set data.image_size to one for all."
        )


# --- Classes ----------------------------------------------------------------------------------------------------------


def _class_names(listings: Mapping[str, Listing], paths: Mapping[str, Path]) -> tuple[str, ...]:
    """In the order of the training part's own numbers, or else sorted: as ImageFolder does, plain numbers by value.

    Raises:
        UserError: if a class is of one part alone, or there are fewer than two.
    """
    train = listings["train"]
    there = set(train.labels)
    for name in sorted({label for listing in listings.values() for label in listing.labels}):
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise UserError(f"The class {name!a} has a letter that cannot be shown; rename it.")
    for part, listing in listings.items():
        strange = sorted(set(listing.labels) - there)
        if strange:
            alike = next((name for name in sorted(there) if _folded(name) == _folded(strange[0])), None)
            hint = "" if alike is None else f" (it has {alike!r}, which is written in other letters)"
            raise UserError(
                f"{shown(paths[part])} has the class {strange[0]!r}, which {shown(paths['train'])} has not{hint}; "
                "add or remove it."
            )
    if len(there) < 2:
        raise UserError(f"{shown(paths['train'])} has a single class, {min(there)!r}; at least two are needed.")
    if train.class_names is None:
        return tuple(sorted(there, key=_by_value if all(re.fullmatch("-?[0-9]+", name) for name in there) else None))
    unused = [name for name in train.class_names if name not in there]
    if unused:
        raise UserError(
            f"{shown(paths['train'])} names {len(train.class_names)} classes, but no image has the class "
            f"{unused[0]!r}; keep the names that are in use."
        )
    return train.class_names


def _by_value(name: str) -> tuple[int, str]:
    return int(name), name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _notes_on_parts(root: Path, listings: Mapping[str, Listing]) -> list[str]:
    """What is odd about the parts, but may be meant."""
    notes = [
        f"{shown(root / name)} is not read: images to validate on lie in validation"
        for name in MISTAKEN
        if (root / name).is_dir()
    ]
    there = sorted(set(listings["train"].labels))
    absent = [name for name in there if name not in set(listings["test"].labels)]
    if absent:
        notes.append(
            f"no test image has the class {absent[0]!r}" + (f" (nor {len(absent) - 1} others)" if absent[1:] else "")
        )
    folded: dict[str, str] = {}
    for name in there:
        other = folded.setdefault(_folded(name), name)
        if other != name:
            notes.append(f"the classes {other!r} and {name!r} are written nearly alike")
    return notes
