"""The MLflow run that a tracker writes: the one it goes on with, or a new one."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient
else:
    MlflowClient = Any  # importing MLflow takes seconds; the tracker's thread does it


class WantedRun(NamedTuple):
    """What the run is to be.

    Attributes:
        run_id: of the run to go on with; None: a new one.
        experiment: name of the MLflow experiment; made when missing.
    """

    run_id: str | None
    name: str
    experiment: str
    tags: Mapping[str, str]


def opened_run(
    client: MlflowClient, wanted: WantedRun, artifact_location: str | None, on_missing: Callable[[str], None]
) -> str:
    """The id of the run, which is said to be running.

    Args:
        artifact_location: of an experiment that is made; None: the store's own.
        on_missing: told the id of a run to go on with that the store does not have.
    """
    from mlflow.exceptions import MlflowException

    if wanted.run_id is not None:
        try:
            client.update_run(wanted.run_id, status="RUNNING")
            return wanted.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            on_missing(wanted.run_id)
    experiment_id = _experiment_id(client, wanted.experiment, artifact_location)
    return client.create_run(experiment_id, run_name=wanted.name, tags=dict(wanted.tags)).info.run_id


def _experiment_id(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifact_location)
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another driver was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return found.experiment_id
