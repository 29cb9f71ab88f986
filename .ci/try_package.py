"""Builds sdist and wheel, and tries the wheel where nothing is but what it asks for.

    .venv/bin/python .ci/try_package.py

The wheel is that of the sdist, which so is shown to be whole. It is installed into fresh environments, in which the
packages that it asks for are links into this one: copying PyTorch takes minutes, and other versions would be tried than
the tests are run with. Other Pythons than this one are given what needs no package, where they are on this machine.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OTHER_PYTHONS = ("3.12", "3.13")

FIT = """
import torch
import l2t_ray

inputs = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
labels = (inputs[:, 0] > 0).long()
fitted = l2t_ray.fit(
    torch.nn.Linear(4, 2), train=(inputs[:40], labels[:40]), validation=(inputs[40:], labels[40:]),
    num_rounds=2, num_steps=2, batch_size=8, val_batch_size=20,
)
assert len(fitted.suspects()) == 40 and len(fitted.history) == 2
fitted.loss.save("loss.safetensors")
loaded = l2t_ray.LearnedLoss.load("loss.safetensors")
assert torch.equal(loaded(fitted.model(inputs), labels), fitted.loss(fitted.model(inputs), labels))
"""
SMALL = ("training.num_rounds=2", "training.num_steps=2", "data.num_train=200", "tracking.mlflow=false", "name=small")


class Bare:
    """A fresh environment with the wheel, and outside of the checkout."""

    def __init__(self, place: Path, wheel: Path, extras: Iterable[str] = ()):
        self.place, self.work = place, place / "work"
        venv.create(place, symlinks=True)
        self.work.mkdir()
        self.python = place / "bin/python"
        options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *options, wheel, cwd=place)
        (packages,) = place.glob("lib/python*/site-packages")
        for found in asked_for(wheel, extras):
            link(found, packages)
        run(sys.executable, "-m", "pip", "--python", self.python, "check", cwd=place)

    def run(self, command: str | Path, *arguments: str, ends: int = 0) -> str:
        """What a command of the environment prints, after checking how it ends."""
        return run(self.place / "bin" / command, *arguments, cwd=self.work, ends=ends)


def run(*command: str | Path, cwd: Path, ends: int = 0) -> str:
    own = ("PYTHONPATH", "L2T_DATA", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == ends, f"{command} ended with {done.returncode} instead of {ends}:\n{said}"
    return said


def built(folder: Path) -> tuple[Path, Path]:
    """The sdist of this checkout, and the wheel of that; it holds what the checkout's own wheel holds."""
    build = (sys.executable, "-m", "hatchling", "build")
    run(*build, "-t", "sdist", "-t", "wheel", "-d", folder / "checkout", cwd=ROOT)
    (sdist,), (wheel,) = (folder / "checkout").glob("*.tar.gz"), (folder / "checkout").glob("*.whl")
    with tarfile.open(sdist) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, "-t", "wheel", "-d", folder / "sdist", cwd=unpacked)
    (again,) = (folder / "sdist").glob("*.whl")
    assert contents(again) == contents(wheel), "the wheel of the sdist is another one than that of the checkout"
    return sdist, again


def contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as file:
        return {entry.filename: entry.CRC for entry in file.infolist()}


def asked_for(wheel: Path, extras: Iterable[str]) -> list[Distribution]:
    """The installed distributions that a wheel asks for, and what these ask for in turn."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        file.extract(name, folder)
        pending = list(required(Distribution.at(Path(folder) / name.partition("/")[0]), ("", *extras)))
    found: dict[str, Distribution] = {}
    while pending:
        asked = pending.pop()
        if asked.name not in found:
            found[asked.name] = distribution(asked.name)
            pending += required(found[asked.name], ("", *asked.extras))
    return list(found.values())


def required(of: Distribution, extras: Sequence[str]) -> Iterator[Requirement]:
    for text in of.requires or ():
        asked = Requirement(text)
        if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in extras):
            yield asked


def link(found: Distribution, packages: Path) -> None:
    """Links what a distribution has at the top of its environment's packages."""
    for name in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
        if not (packages / name).exists():
            (packages / name).symlink_to(Path(str(found.locate_file(name))))


def try_base(bare: Bare) -> None:
    version = re.search(r'__version__ = "(.*)"', (ROOT / "l2t_ray/__init__.py").read_text())
    assert version is not None and bare.run("l2t", "--version") == f"l2t_ray {version[1]}\n"
    for command in (("l2t",), ("python", "-m", "l2t_ray")):
        assert "digits_noise40" in bare.run(*command, "--help")
    bare.run("python", "-W", "error", "-c", "import l2t_ray")
    bare.run("python", "-c", FIT)
    for settings, extra in ((SMALL, "vision"), (("ray.enabled=true", *SMALL), "ray")):
        said = bare.run("l2t", "train", "--config", "quick", *settings, ends=2)
        assert said.count("\n") == 1 and f"pip install 'l2t_ray[{extra}" in said, said


def try_vision(bare: Bare) -> None:
    bare.run("l2t", "train", "--config", "quick", *SMALL)
    assert "model.safetensors" in bare.run("l2t", "show", "runs/small")
    said = bare.run("l2t", "train", "--config", "quick", *SMALL, "tracking.mlflow=true", "name=tracked", ends=2)
    assert said.count("\n") == 1 and "pip install 'l2t_ray[mlflow]'" in said, said


def try_other_python(python: Path, wheel: Path, folder: Path) -> None:
    """What needs no package: every file is compiled, warnings are errors, and the command says what it can."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    run(python, "-W", "error", "-m", "compileall", "-q", "l2t_ray", cwd=folder)
    program = (
        "import sys; sys.path[:0] = ['.']; sys.argv = ['l2t', '--help']; from l2t_ray.__main__ import main; main()"
    )
    assert "digits_noise40" in run(python, "-W", "error", "-c", program, cwd=folder)


def found_python(version: str) -> Path | None:
    """An interpreter of this version that starts: one on the path, or else of pyenv."""
    on_path = shutil.which(f"python{version}")
    for python in [on_path, *sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))]:
        done = python and subprocess.run([python, "--version"], capture_output=True, text=True)
        if done and done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return Path(str(python))
    return None


def main() -> None:
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="l2t-package-") as place:
        folder = Path(place)
        sdist, wheel = built(folder)
        say(f"{sdist.name} and {wheel.name} built")
        try_base(Bare(folder / "base", wheel))
        say("base: imported, fitted, a loss saved and loaded, missing extras said")
        try_vision(Bare(folder / "vision", wheel, ["vision"]))
        say("vision: l2t train and l2t show")
        for version in OTHER_PYTHONS:
            python = found_python(version)
            if python is None:
                say(f"Python {version} is not here")
                continue
            try_other_python(python, wheel, folder / version)
            say(f"Python {version}: compiled, l2t --help")


if __name__ == "__main__":
    main()
