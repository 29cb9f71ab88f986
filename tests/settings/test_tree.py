"""Settings from files and the command line: which one counts, and who is told to have made a mistake."""

import re

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.methods.gce import GCEConfig
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.tree import parsed


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# mine\nseed: 3\ntraining:\n  momentum: 0.5\n  num_rounds: 20\n")
    return path


def refused(path, *overrides):
    with pytest.raises(UserError) as error:
        configuration.load(path, overrides)
    return str(error.value)


def test_a_mistake_in_the_file_is_on_its_line(path):
    path.write_text(path.read_text().replace("0.5", "1.5"))
    assert refused(path, "seed=4").startswith(f"training.momentum in {path}, line 4: input should be less than 1")


def test_a_mistake_in_what_the_file_extends_is_blamed_on_that(path):
    below = path.with_name("below.yaml")
    below.write_text("training: {momentum: 2}\n")
    path.write_text("extends: below.yaml\nseed: 3\n")
    assert refused(path).startswith(f"training.momentum in {below}, line 1:")
    assert configuration.load(path, ["training.momentum=0.2"]).training.momentum == 0.2


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(path):
    assert refused(path, "training.momentum=1.5").startswith("training.momentum on the command line: ")
    assert refused(path, "trainig.momentum=0").startswith("unknown key trainig on the command line; did you mean train")
    assert "x.yaml" not in refused(path, "training={momentum: yes}")


def test_a_section_that_is_given_lines_of_text_is_one_line(path):
    path.write_text("tracking: |\n  mlflow: true\n")
    said = refused(path)
    assert r"set for instance tracking.mlflow='mlflow: true\n'" in said and len(said.splitlines()) == 1


def test_settings_that_contradict_each_other_are_blamed_on_who_came_last(path):
    """The file alone is possible; with what was typed it is not. And the other way round."""
    assert refused(path, "ray.num_workers=30").endswith("(on the command line).")
    path.write_text("ray: {num_workers: 30}\n")
    assert refused(path, "seed=4").endswith(f"(in {path}).")


def test_a_variant_that_the_file_names_keeps_its_name_under_overrides(path):
    path.write_text("method: gce\n")
    assert configuration.load(path, ["method.label=mine"]).method == GCEConfig(label="mine")


def test_the_last_of_two_overrides_of_one_key_counts(path):
    assert configuration.load(path, ["seed=4", "seed=5"]).seed == 5
    assert configuration.load(path, ["method.q=0.5", "method=gce", "method.q=0.6"]).method == GCEConfig(q=0.6)


@pytest.mark.parametrize(
    ("override", "above"),
    [
        ("training.learning_rate.x=1", r"training\.learning_rate, which is 0\.1 in .*\.yaml, line 1 and has no keys"),
        ("controls.0.q=9", r"controls, which is \['gce'\] in .*\.yaml, line 2 and"),
        ("tracking.mlflow.uri=x", r"tracking\.mlflow, which is False in .*; write tracking\.mlflow as a whole\."),
        ("data.noise=3 data.noise.kind=none", r"data\.noise, which is 3 on the command line and"),
    ],
)
def test_a_key_below_something_that_is_no_section_is_refused(path, override, above):
    path.write_text("training: {learning_rate: 0.1}\ncontrols: [gce]\ntracking: {mlflow: false}\n")
    overrides = override.split()
    key = overrides[-1].partition("=")[0]
    assert re.search(rf"{key} on the command line is below {above}", refused(path, *overrides))


def test_keys_and_values_in_place_of_a_list_or_a_number_count(path):
    """As any later value does: right where they may stand there, refused where they may not."""
    path.write_text("controls: [gce]\ntraining: {learning_rate: 0.1}\n")
    assert configuration.load(path, ["controls={name: gce, q: 0.5}"]).controls == (GCEConfig(q=0.5),)
    assert "must be a number, got {'a': 1}" in refused(path, "training.learning_rate={a: 1}")


def test_a_key_that_is_called_as_a_section_of_variants_is_none_elsewhere(path):
    """The terms of boxes are `loss` too, and an option of a data set may be called anything."""
    options = ["data.options.teacher=a", "data.options.student=b"]
    data = configuration.load(path, ["data.boxes.loss=paper", *options]).data
    assert (data.boxes.loss, data.options) == ("paper", {"teacher": "a", "student": "b"})


def test_a_pair_with_one_number_has_too_few_entries(path):
    path.write_text("student: {name: yolo, anchors: [[1]]}\n")
    assert "student.anchors.0" in refused(path) and "has too few entries, got [1]" in refused(path)


def test_text_on_the_command_line_has_no_comments():
    assert parsed(["runs=/a #1/b", "data.root=#2", "name=a: #b"])["runs"] == "/a #1/b"
    assert parsed(["data.root=#2"]) == {"data.root": "#2"}
    assert parsed(["seed=3 # mine", "x='a #b' # c", "y=[a, b] # d"]) == {"seed": 3, "x": "a #b", "y": ["a", "b"]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b=", "has no value; give one, or a.b=null"),
        ("a.b= ", "has no value"),
        ("=x", "is not of the form key.sub=value"),
        ("a..b=1", "is not of the form"),
        ("a. b=1", "is not of the form"),
        ("a", "is not of the form"),
        ("a=[1", r"the value of override 'a=\[1' is not valid YAML: .*; quote it\."),
        ("a=@x", "is not valid YAML"),
        ("a=*x", "is not valid YAML"),
    ],
)
def test_an_override_that_is_none_gets_one_sentence(override, message):
    with pytest.raises(UserError, match=message) as refused:
        parsed([override])
    assert "\n" not in str(refused.value)


def test_files_that_extend_one_another_for_ever_are_refused(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    assert "is extended through more than 20 files" in refused(tmp_path / "0.yaml")
