"""Which MLflow run a run directory was last tracked as, kept in it."""

import json
from contextlib import suppress
from pathlib import Path

from l2t_ray.files import replaced
from l2t_ray.masking import masked

RECORD = "mlflow_run.json"


def recorded_run_id(directory: Path) -> str | None:
    """Id of the MLflow run that a run directory was last tracked as; None if it never reached a store."""
    try:
        return json.loads((Path(directory) / RECORD).read_text())["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(directory: Path, run_id: str | None, uri: str) -> None:
    """Keeps the id, and the store without credentials; not being able to is no reason to stop."""
    with suppress(OSError), replaced(directory / RECORD) as temporary:  # what cannot be written shows elsewhere
        temporary.write_text(json.dumps({"run_id": run_id, "tracking_uri": masked(uri)}) + "\n")
