"""What a run directory says about itself, and whether another command may go on with it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from l2t_ray.assembly.identity import MAY_CHANGE_ON_RESUME, settings
from l2t_ray.interfaces import UserError
from l2t_ray.masking import is_masked, masked
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.checkpoint_names import in_order
from l2t_ray.training.fingerprint import difference
from l2t_ray.training.mirror import MANIFEST

CONFIG = "config.yaml"
FINISHED = "summary.json"
"""Written last of all: a run that has it is finished."""


def read_config(directory: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The configuration of a run, as it wrote it.

    Raises:
        UserError: if there is none, it is a checkpoint's, it is damaged or cut off, or an override would change what
            is computed.
    """
    path = directory / CONFIG
    if (directory / MANIFEST).exists() or (in_order([directory.name]) and directory.parent.name == "checkpoints"):
        raise UserError(
            f"{directory} is a checkpoint; give --resume {directory.parents[1]}, which goes on from the newest one."
        )
    if not path.exists():
        raise UserError(f"{directory} holds no run (no {CONFIG}); give the directory of a run to --resume.")
    for override in overrides:
        if override.split(".")[0].split("=")[0] not in MAY_CHANGE_ON_RESUME:
            raise UserError(
                f"override {override!r} would change a resumed run; "
                f"only {', '.join(MAY_CHANGE_ON_RESUME)} may change, start a new run instead."
            )
    remedy = f"put back a whole one, such as {directory}/checkpoints/*/{CONFIG}, or start a new run"
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        raise UserError(f"{path} is cut off: it does not end with the end of a line; {remedy}.")
    tree = configuration.read_tree(path)
    # Before anything is checked: rules between keys would blame what is left for what is gone.
    missing = _lacking(ExperimentConfig, tree)
    if missing is None:
        config = configuration.load(path)
        missing = min(_keys(config.model_dump(mode="json")) - _keys(tree), default=None)
    if missing is not None:
        raise UserError(
            f"{path} is cut off or of another version: it lacks {missing}, and a run writes every key; {remedy}."
        )
    return configuration.load(path, overrides) if overrides else config


def with_credentials(config: ExperimentConfig, *, remedy: str) -> ExperimentConfig:
    """A configuration that was read back, with what was left out of its file from the environment.

    Args:
        remedy: how to give a URI again; `{key}` in it is the setting.

    Raises:
        UserError: if a URI without its credentials is all there is.
    """
    tracking = config.tracking
    if is_masked(config.storage):
        raise UserError(_missing("storage", config.storage, remedy))
    if tracking.mlflow and is_masked(tracking.uri):
        if masked(os.environ.get("MLFLOW_TRACKING_URI", ""), {}) != tracking.uri:
            raise UserError(_missing("tracking.uri", tracking.uri, f"{remedy}, or set MLFLOW_TRACKING_URI to it"))
        return config.model_copy(update={"tracking": tracking.model_copy(update={"uri": None})})
    return config


def check_unfinished(directory: Path) -> None:
    """
    Raises:
        UserError: if the run in the directory is finished.
    """
    if (directory / FINISHED).exists():
        raise UserError(f"{directory} holds a finished run already; set another name=, or remove that directory.")


def check_same(directory: Path, config: ExperimentConfig) -> None:
    """
    Raises:
        UserError: if the directory holds a run that computes something else.
    """
    if not (directory / CONFIG).exists():
        return
    problem = difference({"settings": settings(read_config(directory))}, {"settings": settings(config)})
    if problem is not None:
        raise UserError(
            f"{directory} holds a run already, and {problem}; set another name=, or go on with it by "
            f"--resume {directory}."
        )


def _missing(key: str, shown: str | None, remedy: str) -> str:
    return f"{key} was {shown}, and credentials are never written; {remedy.format(key=key)}."


def _lacking(record: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key of a record that nested mappings lack; what is in a list, or of several kinds, is not looked at."""
    for name, field in record.model_fields.items():
        if name not in tree:
            return f"{prefix}{name}"
        inner, value = field.annotation, tree[name]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            missing = _lacking(inner, value if isinstance(value, Mapping) else {}, f"{prefix}{name}.")
            if missing is not None:
                return missing
    return None


def _keys(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of all values; what stands in lists has none."""
    keys = set()
    for key, value in tree.items():
        keys |= _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}"}
    return keys
