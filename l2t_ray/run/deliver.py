"""What MLflow gets of a run beside parameters, rows and files."""

import json
from pathlib import Path

from l2t_ray.run import served_model
from l2t_ray.run.arm_files import written_models
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tracking.deliveries import UsedData
from l2t_ray.tracking.mlflow import MlflowTracker
from l2t_ray.training.checkpoint import FINGERPRINT


def deliver_data(tracker: MlflowTracker, config: ExperimentConfig, directory: Path) -> None:
    """The data set, by the checksums that the run has written down; nothing where there are none."""
    path = directory / FINGERPRINT
    if path.is_file():
        settings = {f"data.{key}": value for key, value in config.data.model_dump(mode="json").items()}
        tracker.log_data(UsedData(config.data.name, json.loads(path.read_text())["data"], settings))


def deliver_models(tracker: MlflowTracker, config: ExperimentConfig, directory: Path) -> None:
    """The models of a run that is finished."""
    tracker.log_models(written_models(config, directory), loader=served_model.__name__)
