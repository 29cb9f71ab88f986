"""What an experiment is, whatever it is called and wherever it runs: its fingerprint."""

import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.checked import AnyDataset
from l2t_ray.import_path import sources
from l2t_ray.interfaces import UserError
from l2t_ray.masking import masked_tree
from l2t_ray.settings import yaml_file
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.fingerprint import Fingerprint

MAY_CHANGE_ON_RESUME = ("ray", "tracking", "device", "runs", "storage")
"""Sections that leave the trajectory alone."""

_LEFT_OUT = frozenset(
    {
        *MAY_CHANGE_ON_RESUME,
        "name",
        *("training.checkpoint_every", "training.keep_checkpoints", "training.try_first"),
        # Of files the content counts, and not its place.
        *("data.root", "data.verify", "data.download", "data.noise.file", "student.initial_weights"),
    }
)


def settings(config: ExperimentConfig) -> dict[str, Any]:
    """Every setting that what is computed depends on, by dotted key; items of lists by their number."""
    return {key: value for key, value in _flat(config.model_dump(mode="json")) if not _is_left_out(key)}


def fingerprint(config: ExperimentConfig, dataset: AnyDataset) -> Fingerprint:
    """The settings, the checksums of the examples, the versions of packages, the checksums of modules of one's own."""
    data = {"training images": _digest(dataset.train), "test images": _digest(dataset.test)}
    if dataset.mean:
        data["pixel statistics"] = repr((dataset.mean, dataset.std))
    if dataset.validation is not None:
        data["validation images"] = hashlib.sha256(np.ascontiguousarray(dataset.validation).tobytes()).hexdigest()
    labels, weights = config.data.noise.file, config.student.initial_weights
    if labels is not None:
        data[f"labels of data.noise.file ({config.data.noise.kind})"] = _file_digest("data.noise.file", labels)
    if weights is not None:
        data["weights of student.initial_weights"] = _file_digest("student.initial_weights", weights)
    code = {"l2t_ray": _version(), "torch": torch.__version__, **sources(config.import_paths())}
    return {"settings": settings(config), "data": data, "code": code}


def shown_yaml(config: ExperimentConfig) -> str:
    """The configuration as it is kept with a run: without credentials, which a resumed run is to be given again."""
    return yaml_file.dump(masked_tree(config.model_dump(mode="json")))


def _is_left_out(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: i + 1]) in _LEFT_OUT for i in range(len(parts)))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None or not tree:
        yield prefix, tree
        return
    for key, value in items:
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _digest(images: Any) -> str:
    if not isinstance(images, ImageSet):
        return images.digest()
    digest = hashlib.sha256(repr((images.images.shape, images.class_names)).encode())
    for array in (images.images, images.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _file_digest(key: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {key}={path}: {error.strerror}; give an existing file.") from None


def _version() -> str:
    try:
        return version("l2t_ray")
    except PackageNotFoundError:  # used from a directory, without having been installed
        return "unknown"
