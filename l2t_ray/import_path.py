"""Classes and functions of the user's own, by import path: `package.module:Name`."""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_INSTALLED = ("site-packages", "dist-packages")


def is_import_path(value: object) -> TypeGuard[str]:
    """Whether a value is meant as an import path, well-formed or not."""
    return isinstance(value, str) and ":" in value and not any(map(str.isspace, value))


def imported(path: str) -> Any:
    """The object at `package.module:Name`. Modules in the current directory are found, as those of a script are.

    Raises:
        ValueError: if the path is malformed, the module cannot be imported, or it has no such name; in one sentence
            without a full stop.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no import path; write package.module:Name")
    module_name, _, names = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # it is the user's own code that runs here
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{path!r} cannot be imported ({reason}); put {module_name.partition('.')[0]} into this directory or on "
            "PYTHONPATH, or mend it"
        ) from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{path!r}: {module_name} has no {names}; name something that it defines")
        found = getattr(found, name)
    return found


def directories(paths: Iterable[str]) -> list[str]:
    """Where the modules of these import paths were found, for another process to look there as well."""
    found = set()
    for path in paths:
        if (file := _file_of(name := path.partition(":")[0].partition(".")[0])) is not None:
            found.add(str(file.parent.parent if _is_package(name) else file.parent))
    return sorted(found)


def look_in(places: Iterable[str]) -> None:
    """Lets modules be found in these directories too, as far as this machine has them."""
    for place in places:
        if place not in sys.path and Path(place).is_dir():
            sys.path.append(place)


def sources(paths: Iterable[str]) -> dict[str, str]:
    """Checksums of the modules of these import paths, by name, and of those of their packages, or beside them, that are
    loaded: what they import. What is installed counts by itself alone, and this package not at all."""
    named = {path.partition(":")[0] for path in paths}
    files = {name: file for name in named if (file := _file_of(name)) is not None}
    tops = [file for name in files if (file := _file_of(name.partition(".")[0])) is not None]
    folders = {file.parent for file in tops if not _is_installed(file)}
    for name in [*sys.modules]:
        file = _file_of(name)
        if file is not None and not _is_installed(file) and folders & {*file.parents}:
            files[name] = file
    own = __name__.partition(".")[0]
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in sorted(files.items())
        if name.partition(".")[0] not in (own, "__main__") and file.is_file()
    }


def _is_package(module: str) -> bool:
    return hasattr(sys.modules[module], "__path__")


def _is_installed(file: Path) -> bool:
    return any(part in _INSTALLED for part in file.parts)


def _file_of(module: str) -> Path | None:
    """None: it is not loaded, or comes from no file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).absolute() if isinstance(file, str) else None
