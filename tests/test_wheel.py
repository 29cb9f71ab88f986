"""What is installed: the wheel has the package, its types and its configurations, and asks for the base alone."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import l2t_ray

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, which is not installed")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_it_holds_every_module_and_configuration_and_nothing_else(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "l2t_ray").rglob("*.py")} | {"l2t_ray/py.typed"}
    configs = {f"l2t_ray/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert held == package | configs


def test_it_has_the_command_and_the_version(wheel, metadata):
    assert metadata["Name"] == "l2t_ray" and metadata["Version"] == l2t_ray.__version__
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "l2t = l2t_ray.__main__:main" in wheel.read(name).decode()


def test_it_asks_for_the_base_alone(metadata):
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    base = {each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})}
    assert {"torch", "numpy", "safetensors"} <= base
    assert base & {"ray", "mlflow", "torchvision", "matplotlib", "scikit-learn", "optuna", "pillow"} == set()
    assert {"ray", "mlflow", "vision", "studies", "all"} <= set(metadata.get_all("Provides-Extra"))
