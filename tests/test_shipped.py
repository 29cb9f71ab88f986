"""Configurations that come with the package are found by name; a file is a file."""

from pathlib import Path

import pytest

from l2t_ray import shipped
from l2t_ray.interfaces import UserError
from l2t_ray.shipped import config_file, shipped_names

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_are_listed():
    assert shipped_names() == sorted(str(path.relative_to(CONFIGS))[:-5] for path in CONFIGS.rglob("*.yaml"))
    assert {"digits", "studies/ablation", "released/cifar10_resnet8"} <= set(shipped_names())


@pytest.mark.parametrize("given", ["digits", "digits.yaml", "configs/digits.yaml", Path("configs/digits")])
def test_a_name_is_found(given):
    assert config_file(given) == CONFIGS / "digits.yaml"
    assert config_file("studies/example") == CONFIGS / "studies/example.yaml"


def test_a_file_that_is_there_comes_first_and_a_directory_does_not(elsewhere):
    (elsewhere / "digits").mkdir()
    assert config_file("digits") == CONFIGS / "digits.yaml"
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/digits.yaml").touch()
    assert config_file("configs/digits.yaml") == Path("configs/digits.yaml")
    (elsewhere / "mine").touch()
    assert config_file("mine") == Path("mine")


def test_the_configurations_of_an_installed_package_come_before_those_of_a_repository(elsewhere, monkeypatch):
    (elsewhere / "installed").mkdir()
    (elsewhere / "installed/own.yaml").touch()
    monkeypatch.setattr(shipped, "_PLACES", (elsewhere / "installed", CONFIGS))
    assert shipped_names() == ["own"] and config_file("own") == elsewhere / "installed/own.yaml"


def test_a_path_at_which_nothing_is_stays_what_it_is(elsewhere):
    assert config_file("mine/own.yaml") == Path("mine/own.yaml")
    assert config_file(elsewhere / "digits.yaml") == elsewhere / "digits.yaml"


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no configuration 'digitz': no such file, .* did you mean digits\?"):
        config_file("digitz")
    with pytest.raises(UserError, match="l2t --help lists them"):
        config_file("qqqq")
