"""Methods of the user's own, by import path: taken as any other, and refused in one sentence."""

import sys

import pytest

from l2t_ray.import_path import imported
from l2t_ray.interfaces import UserError
from l2t_ray.settings import experiment as configuration

MODULE = """
from typing import Literal
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Record, Share

class Inner(Record):
    depth: int = 3

class Own(MethodSettings):
    share: Share = 0.5
    inner: Inner = Inner()

    class Nested(MethodSettings):
        pass

class Called(MethodSettings):
    name: Literal["called"] = "called"

class Taught(MethodSettings):
    has_teacher = True

other = Inner()
"""


@pytest.fixture(autouse=True)
def load(tmp_path, monkeypatch):
    """Reads overrides in a directory that has `ours.py`, and a module that cannot be imported."""
    (tmp_path / "ours.py").write_text(MODULE)
    (tmp_path / "ours_failing.py").write_text("import no_such_module_at_all")
    (tmp_path / "ours_exiting.py").write_text("raise SystemExit(3)")
    (tmp_path / "x.yaml").write_text("controls: []\nray: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda *overrides: configuration.load(tmp_path / "x.yaml", overrides)
    for name in [name for name in sys.modules if name.startswith("ours")]:
        del sys.modules[name]


def test_a_class_of_the_current_directory_is_the_method(load):
    config = load("method=ours:Own", "method.share=0.25", "method.inner.depth=4")
    assert type(config.method) is imported("ours:Own")
    assert (config.method.share, config.method.inner.depth) == (0.25, 4)
    assert list(config.arms()) == ["Own"]
    assert list(load("method=ours:Own", "method.clean_images=mixed").arms()) == ["Own-mixed"]
    assert list(load("method=ours:Own.Nested").arms()) == ["Own.Nested"]
    assert list(load("controls=[gce, ours:Own]").arms()) == ["gce", "Own", "recommended"]


def test_what_is_written_down_reads_as_the_same_method(load, tmp_path):
    config = load("method={name: 'ours:Own', share: 0.25}", "controls=[{name: 'ours:Own', label: twice}]")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert configuration.load(tmp_path / "again.yaml") == config
    assert config.flat()["method.share"] == 0.25 and config.flat()["method.name"] == "ours:Own"


def test_an_object_of_a_class_of_ones_own_is_named_by_where_it_is_defined(load):
    own = imported("ours:Own")
    config = load().model_copy(update={"method": own(share=0.1)})
    assert configuration.ExperimentConfig(method=own(share=0.1)).method.name == "ours:Own"
    assert config.flat()["method.name"] == "ours:Own" and config.flat()["method.share"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=ours:Own", "method.shar=1"], r"unknown key method\.shar .*did you mean method\.share\?"),
        (["method=ours:Own", "method.zzz=1"], r"unknown key method\.zzz .*; valid: .*share, inner\."),
        (["method=ours:Own", "method.share=2"], r"method\.share on the command line: .* less than 1, got 2"),
        (["method=ours:Own", "method.inner.dept=2"], r"unknown key method\.inner\.dept .*mean method\.inner\.depth\?"),
        (["method=ours:Own", "method.inner=2"], r"method\.inner .* is a section with the keys depth; "),
        (["controls=[gce, {name: 'ours:Own', q: 1}]"], r"unknown key controls\.1\.q .*; valid: .*share, inner\."),
        (["method=ours:Absent"], r"'ours:Absent': ours has no Absent; name something that it defines"),
        (["method=ours:other"], r"'ours:other' must be a subclass of .*MethodSettings, and is of type Inner"),
        (["method=ours:Inner"], r"'ours:Inner' must be a subclass of .*MethodSettings, and is the class Inner"),
        (["method=ours:MethodSettings"], r"must be a subclass of .*MethodSettings, and is the class MethodSettings"),
        (["method=ours:Called"], r"'ours:Called' is called 'called'; .*leave the field `name` out"),
        (["method=l2t_ray.methods.gce:GCEConfig"], r"is called 'gce'; write that"),
        (
            ["method=nowhere_at_all:Own"],
            r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere_at_all'\)",
        ),
        (["method=ours_failing:Own"], r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_module_at"),
        (["method=ours_exiting:Own"], r"cannot be imported \(SystemExit: 3\)"),
        (["method='ours.py:'"], r"'ours\.py:' is no import path; write package\.module:Name"),
        (["method.name=':Own'"], r"':Own' is no import path"),
        (["method.name='ours:Own:share'"], r"'ours:Own:share' is no import path"),
        (["method.name=' ours:Own'"], r"method\.name on the command line must be one of .*, got ' ours:Own'"),
        (["controls=[ours:Taught]", "ray.enabled=true"], r"on Ray ours:Taught can be the method alone"),
    ],
)
def test_a_mistake_with_a_method_of_ones_own_gets_one_sentence(load, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        load(*overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    ["method={name: l2r, hidden: 3}", "method={name: slf, temperature_end: 3}", "method={name: mentornet, gamma: 2}"],
)
def test_a_setting_that_became_a_constant_is_said_to_be_one(load, override):
    with pytest.raises(UserError, match=r"method\.\w+ on .* no setting any more but the constant [A-Z_]+ of l2t_ray"):
        load(override)


def test_the_constants_that_are_named_are_there():
    from importlib import import_module

    from l2t_ray.methods.registry import METHODS

    named = [(method, constant) for method in METHODS for constant in method.constants.values()]
    assert len(named) == 14
    assert all(hasattr(import_module(method.__module__), constant) for method, constant in named)


def test_a_renamed_key_is_refused_with_its_new_name(load):
    with pytest.raises(UserError, match=r"method\.loss_network on the command line is called method\.loss now"):
        load("method.loss_network.hidden=6")


@pytest.mark.parametrize(
    "override",
    [
        "method.clean_images=judge",
        "method={name: l2t_dln, clean_images: judge}",
        "method={name: 'ours:Own', clean_images: judge}",
    ],
)
def test_a_renamed_value_is_refused_with_its_new_name(load, override):
    with pytest.raises(
        UserError, match=r"method\.clean_images=judge on .* is called method\.clean_images=validate now"
    ):
        load(override)


def test_a_renamed_value_in_a_list_of_methods_is_refused_with_its_place(load):
    with pytest.raises(UserError, match=r"controls\.1\.clean_images=judge on .* is called controls\.1\.clean_images=v"):
        load("controls=[gce, {name: mw_net, clean_images: judge}]")
