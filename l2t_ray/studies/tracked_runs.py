"""Single runs as MLflow has them, with their pictures."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from l2t_ray.reports.run_section import ShownRun
from l2t_ray.run.written import FINISHED
from l2t_ray.studies.log import ROLE
from l2t_ray.tracking.runs import RunRecord, find_runs

MOST_RUNS = 8
"""On one page, whose pictures are within it."""
_STARTED_AT = re.compile(r"-\d{8}-\d{6}$")


def gather_runs(uri: str, experiment: str) -> list[ShownRun]:
    """The runs that `newest` takes, the newest first, as far as they have results."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    found = []
    for run in newest(find_runs(uri, experiment)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                for artifact in (FINISHED, "figures"):
                    download_artifacts(run_id=run.run_id, artifact_path=artifact, dst_path=folder, tracking_uri=uri)
            except (MlflowException, OSError):
                continue  # one without figures, or whose files are gone
            summaries = json.loads((Path(folder) / FINISHED).read_text())
            pictures = {path.stem: path.read_bytes() for path in sorted((Path(folder) / "figures").glob("*.png"))}
        found.append(ShownRun(run.name, run.tags.get("data", ""), summaries, pictures))
    return found


def newest(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Of finished runs that belong to no study the last ones, the newest first: of those that were started several
    times under a name with the time behind it, one.

    Args:
        runs: oldest first.
    """
    by_name = {
        _STARTED_AT.sub("", run.name): run
        for run in runs
        if run.status == "FINISHED" and ROLE not in run.tags and "mlflow.parentRunId" not in run.tags
    }
    order = {run.run_id: place for place, run in enumerate(runs)}
    return sorted(by_name.values(), key=lambda run: -order[run.run_id])[:MOST_RUNS]
