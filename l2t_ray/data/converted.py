"""Where converted sets are kept: Arrow files beside the images, or in the user's cache."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2t_ray.data.arrow import DamagedError, ImageSet, read_images, read_source, write_images
from l2t_ray.interfaces import UserError

Stamp = list[int]
"""What tells a file from the one that lay there before: size, and the times of its content and of its inode in ns."""


def stamp(status: os.stat_result) -> Stamp:
    """Costs nothing, where a checksum of 180 MB at every start would.

    A file that is replaced by another of the same size and modification time is noticed by the time of its inode, which
    no program can set; a change made while the machine's clock is set back to the nanosecond is not.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def cache_directory() -> Path:
    """The user's own folder for what can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2t_ray"


def arrow_paths(root: Path, name: str) -> list[Path]:
    """Where the Arrow file `name` of the images below `root` may lie; the first place is the better one."""
    return [directory / f"{name}.arrow" for directory in (root / "arrow", cache_directory())]


def stamps(paths: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """The stamp of each file, empty where there is none."""
    return tuple(tuple(stamp(path.stat())) if path.exists() else () for path in paths)


def stamps_below(folders: Iterable[Path]) -> tuple[tuple[str | int, ...], ...]:
    """Path and stamp of every file below the folders, as far as these are there."""
    return tuple(sorted((entry.path, *stamp(entry.stat())) for folder in folders for entry in _files_below(folder)))


def _files_below(folder: str | Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _files_below(entry.path)
                elif entry.is_file():  # no link to nowhere
                    yield entry
    except OSError:  # it is not there, or may not be read, which is said when the set is opened
        return


def open_current(
    paths: Sequence[Path], is_current: Callable[[Mapping[str, Any]], bool]
) -> tuple[ImageSet | None, DamagedError | None]:
    """The images of the first file whose source is current, and what was found damaged on the way to it."""
    damage = None
    for path in paths:
        try:
            if path.exists() and is_current(read_source(path)):
                return read_images(path), damage
        except DamagedError as error:
            damage = error
    return None, damage


def warn_of(damage: DamagedError | None) -> None:
    """Says that a damaged file is made anew."""
    if damage is not None:
        warnings.warn(f"{damage.what}; it is made anew from its source", stacklevel=2)


def keep(images: ImageSet, paths: Sequence[Path]) -> ImageSet:
    """The images, from an Arrow file at the first of the paths that can be written.

    Raises:
        UserError: if none can.
    """
    reasons = []
    for path in paths:
        try:
            write_images(
                path,
                images.images,
                images.labels,
                class_names=images.class_names,
                source=images.source,
                positions=images.positions,
            )
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror or error}")
        else:
            return read_images(path)
    name = images.source["name"]
    raise UserError(f"No folder can hold the converted {name} images ({'; '.join(reasons)}); free or unlock one.")
