"""What a tracker brings to an MLflow run beside parameters and rows: files, the data it was trained on, its models."""

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from l2t_ray.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
else:
    MlflowClient = Any  # importing MLflow takes seconds; the tracker's thread does it

_LONGEST_DIGEST = 36
_CONTEXT = "mlflow.data.context"


@runtime_checkable
class Delivery(Protocol):
    """Something that is brought to a run once; sent a second time it changes nothing."""

    def send(self, client: MlflowClient, run_id: str) -> None: ...


class Files(NamedTuple):
    """A file, or a directory under its own name."""

    path: str

    def __str__(self) -> str:
        return self.path

    def send(self, client: MlflowClient, run_id: str) -> None:
        if Path(self.path).is_dir():
            client.log_artifacts(run_id, self.path, artifact_path=Path(self.path).name)
        else:
            client.log_artifact(run_id, self.path)


class UsedData(NamedTuple):
    """A data set and what its parts are.

    Attributes:
        name: of the set.
        digests: a checksum of each part, by what it is; the one of the images that are tested on is apart in MLflow.
        settings: how the set was opened and divided, for whoever reads it.
    """

    name: str
    digests: Mapping[str, str]
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return f"data set {self.name}"

    def send(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # A source that MLflow's own reader of it knows: text.
        source = json.dumps({"tags": {key: masked(str(value)) for key, value in self.settings.items()}})
        inputs = []
        for context in ("training", "testing"):
            own = {part: value for part, value in self.digests.items() if ("test" in part) == (context == "testing")}
            digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:_LONGEST_DIGEST]
            dataset = Dataset(self.name, digest, "code", source, profile=json.dumps(own))
            inputs.append(DatasetInput(dataset, [InputTag(_CONTEXT, context)]))
        client.log_inputs(run_id, datasets=inputs)


class ModelFile(NamedTuple):
    """A trained model, which MLflow lists under the name of its arm.

    Attributes:
        loader: the module by which `mlflow.pyfunc` loads the file.
    """

    arm: str
    path: Path
    loader: str

    def __str__(self) -> str:
        return f"the model of {self.arm}"

    def send(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        experiment = client.get_run(run_id).info.experiment_id
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        there = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
        if any((model.name, model.tags.get("sha256")) == (self.arm, content) for model in there):
            return
        tags = {"arm": self.arm, "sha256": content}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(self.path, folder)
            described = Model(run_id=run_id)
            python = platform.python_version()
            described.add_flavor(
                "python_function", loader_module=self.loader, data=self.path.name, python_version=python
            )
            described.save(str(Path(folder) / "MLmodel"))
            model = client.create_logged_model(experiment, self.arm, source_run_id=run_id, tags=tags)
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
