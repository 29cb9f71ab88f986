"""A part of a user's own images as folders, one a class: what lies there, and what of it is an image."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from l2t_ray.data.converted import stamp
from l2t_ray.data.own_listing import Listing
from l2t_ray.data.pictures import Picture, is_readable, shown
from l2t_ray.interfaces import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Of files that must be images. Those with other endings are images if their content says so."""
UNREADABLE = re.compile(
    r"\.(heic|heif|jxl|dcm|dicom|nii|nii\.gz|mha|nrrd|exr|hdr|dng|cr2|cr3|nef|arw|orf|raw|psd|svg|eps|tga|ico|dds"
    r"|npy|npz|mat|h5|hdf5|pt|fits?|mp4|avi|mov|zip|tar|gz|tgz|7z|rar)$",
    re.IGNORECASE,
)
"""Images and what may hold some, in formats that are not read: to pass over them would lose a user's images."""
OF_THE_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "@eadir", "$recycle.bin"}
"""What file managers leave behind, in lower case. Whatever begins with a dot is hidden as well."""


class Found(NamedTuple):
    """What lies below a folder: (file, class) pairs in order, a line of facts on each file, how much is hidden."""

    files: Sequence[tuple[Path, str]]
    facts: Sequence[bytes]
    num_hidden: int
    loose: Sequence[Path]
    """Files beside the class folders."""


def find(folder: Path) -> Found:
    """Walks through `folder` without opening a file. Links are followed.

    Raises:
        UserError: if a class has no file, or something is neither file nor folder, a
            link that leads nowhere or in a circle, or out of reach.
    """
    files: list[tuple[Path, str]] = []
    facts: list[bytes] = []
    loose: list[Path] = []
    entries, num_hidden = _entries(folder)
    for path, status in entries:
        if not stat.S_ISDIR(status.st_mode):
            loose.append(path)
            facts.append(_fact(folder, path, status))
            continue
        inside, hidden = _files_below(path, status)
        num_hidden += hidden
        if not inside:
            raise UserError(f"{shown(path)} holds no image; put some there, or remove the folder.")
        for file, of_file in sorted(inside):
            files.append((file, path.name))
            facts.append(_fact(folder, file, of_file))
    return Found(files, facts, num_hidden, loose)


def listing_of(folder: Path, found: Found) -> Listing:
    """The images among what was found.

    Raises:
        UserError: if a file is of a format that is not read, a class has no image, or images lie beside the classes.
    """
    pictures, labels, others = [], [], [*found.loose]
    for path in found.loose:
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"{shown(path)} lies in no folder of a class; move it into one, such as {folder}/cat.")
    for path, label in found.files:
        picture = Picture(path, shown(path))
        if path.suffix.lower() not in SUFFIXES and not is_readable(picture):
            if UNREADABLE.search(path.name):
                raise UserError(f"{shown(path)} is of a format that is not read; convert it to PNG, or take it out.")
            others.append(path)
        else:
            pictures.append(picture)
            labels.append(label)
    empty = sorted({label for _, label in found.files} - set(labels))
    if empty:
        raise UserError(f"{shown(folder / empty[0])} holds no image; put some there, or remove the folder.")
    if not pictures:
        raise UserError(f"{folder} has no image in a folder of its class, such as {folder}/cat/1.png; put some there.")
    notes = []
    if found.num_hidden:
        notes.append(f"{folder}: {found.num_hidden} hidden files or folders skipped")
    if others:
        named = ", ".join(shown(path.relative_to(folder)) for path in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        notes.append(f"{folder}: {len(others)} files that are no images skipped ({named}{more})")
    return Listing(pictures, labels, np.arange(len(labels)), len(labels), None, tuple(notes))


def _entries(folder: Path) -> tuple[list[tuple[Path, os.stat_result]], int]:
    """What lies in the folder, sorted, and the number of hidden things among it."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed ({error.strerror}); unlock it or take it out.") from None
    visible = [name for name in names if not (name.startswith(".") or name.lower() in OF_THE_SYSTEM)]
    return [(folder / name, _status(folder / name)) for name in visible], len(names) - len(visible)


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        what = "is a link that leads nowhere" if path.is_symlink() else "cannot be reached"
        raise UserError(f"{shown(path)} {what} ({error.strerror}); mend it or take it out.") from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{shown(path)} is neither a file nor a folder; take it out.")
    return status


def _files_below(folder: Path, status: os.stat_result) -> tuple[list[tuple[Path, os.stat_result]], int]:
    files, num_hidden = [], 0
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, ((status.st_dev, status.st_ino),))]
    while waiting:
        directory, above = waiting.pop()
        entries, hidden = _entries(directory)
        num_hidden += hidden
        for path, of_entry in entries:
            if not stat.S_ISDIR(of_entry.st_mode):
                files.append((path, of_entry))
            elif (identity := (of_entry.st_dev, of_entry.st_ino)) in above:
                raise UserError(f"{shown(path)} is a link to a folder above it; remove the link.")
            else:
                waiting.append((path, (*above, identity)))
    return files, num_hidden


def _fact(folder: Path, path: Path, status: os.stat_result) -> bytes:
    return os.fsencode(path.relative_to(folder)) + b" %d %d %d" % tuple(stamp(status))
