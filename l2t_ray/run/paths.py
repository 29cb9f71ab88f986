"""Paths of an experiment, which hold wherever its parts run."""

import os
from pathlib import Path

from l2t_ray.assembly.images import data_root
from l2t_ray.settings.experiment import ExperimentConfig


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with every path absolute: workers, resumed runs and later commands run in other directories."""
    here, data = working_directory(), config.data
    root = here / data_root(os.environ.get("L2T_DATA"), data.root).expanduser()
    noise = data.noise
    if noise.file is not None:
        noise = noise.model_copy(update={"file": (here / noise.file.expanduser()).resolve()})
    data = data.model_copy(update={"root": root.resolve(), "noise": noise})
    return config.model_copy(update={"data": data, "runs": (here / config.runs.expanduser()).resolve()})


def working_directory() -> Path:
    """Where relative paths begin: here; at home in a submitted job, whose own directory is a copy that Ray deletes."""
    here = Path.cwd()
    return Path.home() if any(part.startswith("_ray_pkg_") for part in here.parts) else here
