"""Whoever lacks an extra is told how to get it, before anything is trained; and the base does without all of them."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from l2t_ray.data import box_transforms, mask_transforms, scans
from l2t_ray.exit_codes import exit_codes
from l2t_ray.extras import EXTRAS, Need, need, needed_by
from l2t_ray.interfaces import UserError
from l2t_ray.run.ready_experiment import check_installed
from l2t_ray.settings.experiment import validate
from l2t_ray.tasks import detections

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OF_OTHERS = {"lightning", "hf"}
"""Loops of other people, which whoever uses them has."""
DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn"}


@pytest.fixture
def bare(monkeypatch):
    """As where nothing but the base is installed."""
    for name in {*EXTRAS, *(loaded for loaded in sys.modules if loaded.partition(".")[0] in EXTRAS)}:
        monkeypatch.setitem(sys.modules, name, None)


def names(requirements):
    return {Requirement(text).name for text in requirements}


def test_each_extra_brings_what_is_said_of_it():
    extras = PROJECT["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert DISTRIBUTION.get(package, package) in names(extras[extra])
        assert DISTRIBUTION.get(package, package) not in names(PROJECT["dependencies"])
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "l2t_ray" and everything.extras == set(EXTRAS.values()) - OF_OTHERS


def test_what_is_missing_is_said_with_the_command(bare):
    with pytest.raises(UserError, match=r"^boxes needs torchvision, which is not .* 'l2t_ray\[vision\]', or wait\.$"):
        need(Need("torchvision", "boxes", "wait"))
    sentence = r"^files needs Pillow, which is not installed; pip install 'l2t_ray\[vision\]'\.$"
    with pytest.raises(UserError, match=sentence), needed_by("files"):
        from PIL import Image  # noqa: F401


def test_a_job_that_lacks_an_extra_ends_as_one_with_a_mistake(bare, capsys):
    with pytest.raises(SystemExit) as exit, exit_codes():
        import mlflow  # noqa: F401
    assert exit.value.code == 2
    assert (
        capsys.readouterr().err == "error: this needs MLflow, which is not installed; pip install 'l2t_ray[mlflow]'.\n"
    )


def test_what_no_extra_brings_is_no_mistake_of_the_user():
    with pytest.raises(ModuleNotFoundError), exit_codes(), needed_by("this"):
        import l2t_ray.nothing_here  # noqa: F401
    need(Need("torch", "everything"))


def test_all_that_a_run_lacks_is_said_at_once(bare):
    with pytest.raises(UserError) as error:
        check_installed(validate({}, source="here"), tracks=True, draws=False)
    assert str(error.value) == (
        "ray.enabled=true needs Ray and tracking.mlflow=true needs MLflow, which are not installed; "
        "pip install 'l2t_ray[ray,mlflow]', or set ray.enabled=false and set tracking.mlflow=false."
    )
    plain = validate({"ray": {"enabled": False}, "tracking": {"mlflow": False}}, source="here")
    check_installed(plain, tracks=True, draws=False)
    with pytest.raises(UserError, match=r"drawing figures needs Matplotlib, .* 'l2t_ray\[vision\]'\.$"):
        check_installed(plain, tracks=True, draws=True)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("lightning", r"l2t_ray\.lightning needs Lightning, .* pip install 'l2t_ray\[lightning\]'\.$"),
        ("huggingface", r"l2t_ray\.huggingface needs Transformers and .* pip install 'l2t_ray\[hf\]'\.$"),
    ],
)
def test_the_loops_of_others_say_what_they_lack(bare, monkeypatch, module, sentence):
    monkeypatch.delitem(sys.modules, f"l2t_ray.{module}", raising=False)
    with pytest.raises(UserError, match=sentence):
        import_module(f"l2t_ray.{module}")


IMAGE = np.zeros((3, 4, 4), dtype=np.uint8)
USES = {
    "scans": lambda: scans.digit_scans(),
    "boxes": lambda: box_transforms.placed(IMAGE, box_transforms.letterbox(4, 4, (8, 8)), fill=[0.0] * 3),
    "masks": lambda: mask_transforms.windowed(
        IMAGE, IMAGE[0], mask_transforms.Window(0, 0, 4, 4), (4, 4), fill=[0.0] * 3, ignore=255
    ),
    "detections": lambda: detections.survivors(torch.zeros(1, 1, 4), torch.zeros(1, 1, 3)),
}


@pytest.mark.parametrize("use", USES)
def test_each_place_that_needs_an_extra_says_so(bare, use):
    with pytest.raises(UserError, match=r"needs .*, which is not installed; pip install 'l2t_ray\[vision\]'\.$"):
        USES[use]()


BASE = """
import sys
sys.modules |= dict.fromkeys({extras}, None)
import torch
import l2t_ray
from l2t_ray import __main__, load_model, run, train_command
inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
labels = (inputs[:, 0] > 0).long()
fitted = l2t_ray.fit(
    torch.nn.Linear(4, 2), train=(inputs[:40], labels[:40]), validation=(inputs[40:], labels[40:]),
    num_rounds=2, num_steps=2, batch_size=8, val_batch_size=8, try_first=False,
)
fitted.loss(fitted.model(inputs), labels)
print(len(fitted.suspects()))
"""


def test_the_base_fits_without_any_extra():
    program = BASE.format(extras=sorted(EXTRAS))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "40\n", done.stderr
