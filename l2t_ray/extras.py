"""What is installed beside the base, by need: whoever lacks it is told how to get it, in one sentence.

Imports nothing heavy, and nothing of what it is about.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from l2t_ray.interfaces import UserError

EXTRAS: Mapping[str, str] = {
    "ray": "ray",
    "mlflow": "mlflow",
    "optuna": "studies",
    "torchvision": "vision",
    "PIL": "vision",
    "sklearn": "vision",
    "matplotlib": "vision",
    "lightning": "lightning",
    "transformers": "hf",
    "accelerate": "hf",
}
"""The extra that brings a package, by the name under which the package is imported."""
_CALLED = {
    "ray": "Ray",
    "mlflow": "MLflow",
    "optuna": "Optuna",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "matplotlib": "Matplotlib",
    "lightning": "Lightning",
    "transformers": "Transformers",
    "accelerate": "Accelerate",
}


class Need(NamedTuple):
    """A package, by the name under which it is imported; what needs it; and what can be done without it."""

    package: str
    what: str
    otherwise: str = ""


def need(*needs: Need) -> None:
    """
    Raises:
        UserError: if some of them are not installed; one sentence says how to get all.
    """
    missing = [each for each in needs if importlib.util.find_spec(each.package) is None]
    if missing:
        raise UserError(_sentence(*missing))


@contextmanager
def needed_by(what: str, *, otherwise: str = "") -> Iterator[None]:
    """Around imports of what an extra brings; `what` needs it.

    Raises:
        UserError: if it is not installed. What else is not found is for this package to mend.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = lacking(error)
        if package is None:
            raise
        raise UserError(_sentence(Need(package, what, otherwise))) from None


def lacking(error: ModuleNotFoundError) -> str | None:
    """The package that is not installed, if an extra brings it."""
    package = (error.name or "").partition(".")[0]
    return package if package in EXTRAS else None


def sentence_about(error: ModuleNotFoundError) -> str | None:
    """What is said of a package that an extra brings; None: no extra does."""
    package = lacking(error)
    return None if package is None else _sentence(Need(package, "this"))


def _sentence(*missing: Need) -> str:
    whats = " and ".join(f"{what} needs {_CALLED.get(package, package)}" for package, what, _ in missing)
    extras = ",".join(dict.fromkeys(EXTRAS[package] for package, *_ in missing))
    ways = [otherwise for *_, otherwise in missing]
    remedy = f"pip install 'l2t_ray[{extras}]'" + (f", or {' and '.join(ways)}" if all(ways) else "")
    return f"{whats}, which {'is' if len(missing) == 1 else 'are'} not installed; {remedy}."
