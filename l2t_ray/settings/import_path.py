"""Classes and functions of the user's own, by import path: `package.module:Name`."""

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from l2t_ray.settings.record import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(value: object) -> TypeGuard[str]:
    """Whether a value is meant as an import path, well-formed or not."""
    return isinstance(value, str) and ":" in value


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


def own_record(section: Any, kind: type[AnyRecord]) -> type[AnyRecord] | None:
    """The class of the user's own whose import path is the `name` of a section; None: it has another name, or none.

    Raises:
        ValueError: as `imported`; or if it is something else than a subclass of `kind`, or has a name of its own.
    """
    path = section.get("name") if isinstance(section, Mapping) else None
    if not is_import_path(path):
        return None
    found = imported(path)
    if not (isinstance(found, type) and issubclass(found, kind) and found is not kind):
        raise ValueError(f"{path!r} must be a subclass of {kind.__module__}.{kind.__name__}, and is {_kind(found)}")
    if not found.model_fields["name"].is_required():
        raise ValueError(
            f"{path!r} is called {found.model_fields['name'].default!r}; write that if it is a method of l2t_ray, or "
            "leave the field `name` out of a class of your own"
        )
    return found


def _kind(value: Any) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of type {type(value).__name__}"
