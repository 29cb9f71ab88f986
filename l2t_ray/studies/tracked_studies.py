"""Studies as MLflow has them."""

import json
import logging
import os
import tempfile
from typing import Any

from l2t_ray.interfaces import UserError
from l2t_ray.studies.log import ROLE
from l2t_ray.studies.study_results import FILE
from l2t_ray.tracking.runs import find_runs


def gather(uri: str, experiment: str) -> list[dict[str, Any]]:
    """What the studies of an experiment came to: of several runs of the same study and size, the newest that has
    results; in the order of the paper's tables, studies of one's own last.

    Raises:
        UserError: if there is no store that MLflow can read.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each file of a second
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tables that it makes are nobody's concern
    try:
        runs = find_runs(uri, experiment, tags={ROLE: "study"})
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")[:200]
        raise UserError(f"cannot read the MLflow store: {reason}; name another one with --runs or --uri.") from None
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = download_artifacts(run_id=run.run_id, artifact_path=FILE, dst_path=folder, tracking_uri=uri)
            except (MlflowException, OSError):
                continue  # a study that is on its way has none yet
            with open(path) as file:  # noqa: PTH123 (MLflow gives text)
                found[run.tags.get("study", ""), run.tags.get("size", "")] = json.load(file)
    return sorted(found.values(), key=lambda study: (not study["table"], study["table"], study["name"], study["size"]))
