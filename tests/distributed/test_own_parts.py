"""Parts of the user's own on Ray: the workers find them, wherever they were found here."""

import sys

import pytest
from pages import PAGES

from l2t_ray.distributed.launch import absent_module
from l2t_ray.run import Experiment
from l2t_ray.tracking.metrics import read_rows

pytestmark = pytest.mark.ray
COMPARED = (
    "arm",
    "round",
    "train_loss",
    "val_error",
    "test_accuracy",
    "gradient_norm",
    "hypergradient_norm",
    "smoothing",
)


@pytest.fixture
def own_directory(tmp_path, monkeypatch):
    """The page's files in a directory that Ray, which runs already, was never told of."""
    page = PAGES["docs/extending.md"]
    page.write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in page.modules:
        sys.modules.pop(name, None)


def numbers_of(result):
    return [[row[name] for name in COMPARED] for row in read_rows(result.directory / "metrics.parquet")]


def test_a_worker_trains_task_data_student_loss_and_method_of_ones_own_to_the_same_bit(ray_cluster, own_directory):
    ends = []
    for name, ray in (("plain", "ray.enabled=false"), ("ray", "ray.num_workers=1")):
        few = ["training.num_rounds=3", "controls=[small_loss:SmallLossConfig]", "tracking.mlflow=false"]
        experiment = Experiment.from_yaml("own.yaml", [f"name={name}", ray, *few])
        ends.append(numbers_of(experiment.run(quiet=True, figures=False)))
    plain, on_ray = ends
    assert len(plain) == 2 * 3 and plain == on_ray


def test_a_module_that_a_machine_lacks_is_named_with_what_to_do():
    told = "ray::f()\n  File x\nValueError: 'a.b:C' cannot be imported (ModuleNotFoundError: No module named 'a'); put"
    assert str(absent_module(RuntimeError(told))).startswith(
        "on a machine of the cluster 'a.b:C' cannot be imported (ModuleNotFoundError: No module named 'a'); submit"
    )
    assert absent_module(RuntimeError("The actor died")) is None
