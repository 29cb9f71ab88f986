"""The configurations that come with the package, by name: `digits`, `studies/ablation`.

Imports nothing heavy, as `exit_codes`.
"""

from pathlib import Path

_PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
"""In what is installed; and in the repository."""


def shipped_folder() -> Path:
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def shipped_names() -> list[str]:
    """Names of all, without `.yaml`."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def config_file(given: str | Path) -> Path:
    """The file that is meant: the one at this path, or the configuration of this name (with or without `configs/` and
    `.yaml`) that comes with the package. A path at which there is nothing stays what it is.

    Raises:
        UserError: if a bare name is neither.
    """
    path = Path(given)
    if path.exists() and not path.is_dir():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in (names := shipped_names()):
        return shipped_folder() / f"{name}.yaml"
    if path.suffix or path.is_absolute() or path.exists():
        return path
    from difflib import get_close_matches

    from l2t_ray.interfaces import UserError  # it brings PyTorch

    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "l2t --help lists them; or give a YAML file."
    raise UserError(f"there is no configuration {str(given)!r}: no such file, and none of this name in l2t_ray; {hint}")
