"""Reads runs back from MLflow: the trials of a study, or all runs with given tags."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient


class RunRecord(NamedTuple):
    """One MLflow run: its parameters as strings, and the last value of each metric."""

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def find_runs(
    uri: str, experiment: str, *, parent_run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> list[RunRecord]:
    """The runs of an experiment, oldest first; an empty list if there is no such experiment.

    Args:
        uri: tracking URI of the store.
        experiment: name of the experiment.
        parent_run_id: only the trials of this study.
        tags: only runs with all of these tags.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    wanted = dict(tags or {})
    if parent_run_id is not None:
        wanted["mlflow.parentRunId"] = parent_run_id
    query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in wanted.items())
    records, token = [], None
    while True:
        page = client.search_runs(
            [found.experiment_id], filter_string=query, order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            info, data = run.info, run.data
            records.append(
                RunRecord(info.run_id, info.run_name or "", info.status, data.params, data.metrics, data.tags)
            )
        token = page.token
        if not token:
            return records


def metric_history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """All (round, value) of one metric, such as `val_error`, in order of rounds."""
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in history)


def logged_rows(client: "MlflowClient", run_id: str, method: str = "") -> set[tuple[str, int]]:
    """The rows that a run has, by (arm, round): `round` is logged last of each, of a control `<arm>/round`."""
    logged = set()
    for key in client.get_run(run_id).data.metrics:
        arm, _, name = key.rpartition("/")
        if name == "round":
            logged.update((arm or method, metric.step) for metric in client.get_metric_history(run_id, key))
    return logged


def _quoted(value: str) -> str:
    # MLflow's filters know no escapes: a value with one kind of quote is put in the other.
    return f'"{value}"' if "'" in value else f"'{value}'"
