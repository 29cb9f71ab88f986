"""Classes and functions of the user's own, by import path: `package.module:Name`."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any, TypeGuard

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


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
