"""Modules of the user's own: where they lie, and what tells them from others."""

import importlib
import sys

import pytest

from l2t_ray.import_path import directories, look_in, sources


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with a package, a module that imports from beside it, and one that nobody imports; on the path."""
    (tmp_path / "own_package/deep").mkdir(parents=True)
    for path, text in {
        "own_package/__init__.py": "",
        "own_package/deep/__init__.py": "",
        "own_package/deep/parts.py": "from own_package import base\nName = 1",
        "own_package/base.py": "",
        "own_alone.py": "import own_beside, yaml\nName = 1",
        "own_beside.py": "",
        "own_other.py": "",
    }.items():
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_modules_count_with_what_they_import_from_beside_them(own):
    importlib.import_module("own_alone")
    before = sources(["own_alone:Name"])
    assert before.keys() == {"own_alone", "own_beside"}  # neither what is installed nor what is not loaded
    (own / "own_beside.py").write_text("changed = True")
    after = sources(["own_alone:Name"])
    assert after["own_alone"] == before["own_alone"] and after["own_beside"] != before["own_beside"]


def test_modules_of_a_package_count_with_the_rest_of_it(own):
    importlib.import_module("own_package.deep.parts")
    importlib.import_module("own_other")
    names = {"own_package", "own_package.deep", "own_package.deep.parts", "own_package.base"}
    assert sources(["own_package.deep.parts:Name"]).keys() == names


def test_this_package_and_what_is_installed_count_by_themselves_or_not_at_all(own):
    importlib.import_module("own_alone")
    assert sources(["l2t_ray.methods.gce:GCEConfig", "own_absent:Name"]) == {}
    assert sources(["yaml.nodes:Node"]).keys() == {"yaml.nodes"}


def test_a_module_of_a_package_is_found_where_the_package_is(own):
    for name in ("own_package.deep.parts", "own_alone"):
        importlib.import_module(name)
    assert directories(["own_package.deep.parts:Name"]) == directories(["own_alone:Name"]) == [str(own)]
    assert directories(["own_absent:Name"]) == []


def test_directories_are_looked_in_once_and_only_where_they_are(own, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first"])
    look_in([str(own), str(own / "absent"), str(own)])
    look_in([str(own)])
    assert sys.path == ["first", str(own)]
