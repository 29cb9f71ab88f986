"""Published sets whose images are named by text files: the folder, the list, and what it lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from l2t_ray.data.pictures import shown
from l2t_ray.interfaces import UserError


def folder_with(root: Path, name: str, places: Sequence[str], sign: str) -> Path:
    """The first of these folders below `root` that has `sign`.

    Raises:
        UserError: if none has.
    """
    for place in places:
        if (root / place / sign).exists():
            return root / place
    raise UserError(
        f"data.name={name}, but {shown(root)} has no {Path(places[0]) / sign}; set data.root to the folder that has it."
    )


def lines_of(path: Path) -> list[str]:
    """Of a list of images, without empty ones.

    Raises:
        UserError: if there are none, or it cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({error}); put the list of images there.") from None
    if not lines:
        raise UserError(f"{shown(path)} lists no image; put one a line there.")
    return lines


def is_file(path: Path) -> bool:
    """Whether a file is there. What a list or an annotation names may be no name of a file at all."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def check_class_name(name: object, path: Path) -> None:
    """
    Raises:
        UserError: if it is no name that can be shown in a table; `path` is the file that has it.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f"{shown(path)} has the class name {name!r}; give the class a name of printable characters.")


def existing(path: Path, listed: Path) -> Path:
    """The path, if a file is there.

    Raises:
        UserError: if not; `listed` is the file that names it.
    """
    if not is_file(path):
        raise UserError(f"{shown(listed)} lists {shown(path)}, which is not there; add the file or remove the line.")
    return path


def check_disjoint(name: str, parts: Mapping[str, Sequence[Path]]) -> None:
    """
    Raises:
        UserError: if an image is in two parts of the set called `name`, or in one of them twice.
    """
    part_of: dict[Path, str] = {}
    for part, images in parts.items():
        for image in images:
            path = image.resolve()
            before = part_of.get(path)
            if before == part:
                raise UserError(f"data.name={name}: {shown(image)} is in the {part} part twice; list it once.")
            if before is not None:
                raise UserError(
                    f"data.name={name}: {shown(image)} is in the {before} part and in the {part} part; take it out of "
                    "one."
                )
            part_of[path] = part
