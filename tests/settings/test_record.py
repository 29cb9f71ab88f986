"""Every number of every configuration is refused by its dotted key where it is none, or one that makes no sense."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from l2t_ray.interfaces import UserError
from l2t_ray.settings.experiment import ExperimentConfig, validated
from l2t_ray.settings.tree import Settings
from l2t_ray.studies.declaration import Asha, Distribution, Size, Study

BAD = {
    "true": True,
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "nan": float("nan"),
    "word": "many",
    "nan in quotes": "nan",
    "octal": "0o17",
    "sexagesimal": "1:30",
    "list": [[1]],
    "mapping": {"a": 1},
    "negative": -1,
    "huge": 1e300,
    "huge whole number": 10**40,
    "more digits than Python reads": "9" * 5000,
    "too small for single precision": 1e-300,
}


def number_types(annotation: Any) -> bool:
    """Whether an annotation admits a number, at any depth but inside a record."""
    if annotation in (int, float):
        return True
    return any(number_types(part) for part in get_args(annotation) if not isinstance(part, str))


def is_many(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return any(is_many(part) for part in get_args(annotation))
    return get_origin(annotation) is tuple


def is_mapping(annotation: Any) -> bool:
    """Of a name to a number: `{"a": 1}` is one."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return any(is_mapping(part) for part in get_args(annotation))
    return get_origin(annotation) in (dict, Mapping)


def records(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in records(part)]


def fields(record: type[BaseModel]) -> Iterator[tuple[tuple[tuple[str, dict], ...], str, bool]]:
    """The sections that lead to each number (each with what tells its variant apart), its name, and if it is a list."""
    for name, field in record.model_fields.items():
        if is_mapping(field.annotation) and number_types(field.annotation):
            yield ((name, {}),), "of_a_name", False
        elif number_types(field.annotation):
            yield (), name, is_many(field.annotation)
        for section in records(field.annotation):
            tag = section.model_fields.get("name")
            variant = {"name": tag.default} if tag is not None and isinstance(tag.default, str) else {}
            for path, number, many in fields(section):
                if name != "controls":
                    yield ((name, variant), *path), number, many


def tree_of(path: tuple[tuple[str, dict], ...], name: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {name: value}
    for section, variant in reversed(path):
        tree = {section: {**variant, **tree}}
    return tree


FIELDS = list(fields(ExperimentConfig))


def test_the_walk_meets_numbers_at_every_depth():
    names = {".".join([*(section for section, _ in path), name]) for path, name, _ in FIELDS}
    assert {"seed", "training.drops", "method.teacher.cells", "method.teacher.base.step_size", "method.q"} <= names
    assert len(FIELDS) > 70


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_no_number_of_an_experiment_is_anything_else(value):
    for path, name, many in FIELDS:
        key = ".".join([*(section for section, _ in path), name])
        tree = tree_of(path, name, [value] if many else value)
        with pytest.raises(UserError) as refused:
            validated(ExperimentConfig, Settings(tree, "in x.yaml"))
        said = str(refused.value)
        places = (f"{key}.0 in x.yaml", f"{key}.0.0 in x.yaml") if many else f"{key} in x.yaml"
        assert said.startswith(places), said
        assert "\n" not in said and len(said) < 300, said


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize(
    ("record", "tree"),
    [
        (Study, lambda bad: {"samples": bad}),
        (Study, lambda bad: {"seeds": [bad]}),
        (Size, lambda bad: {"seeds": [bad]}),
        (Asha, lambda bad: {"grace_rounds": bad}),
        (Asha, lambda bad: {"reduction": bad}),
        (Distribution, lambda bad: {"log_uniform": [bad, 1]}),
        (Distribution, lambda bad: {"integers": [0, bad]}),
    ],
)
def test_no_number_of_a_study_is_anything_else(record, tree, value):
    key = next(iter(tree(0)))
    needed = {"title": "x", "base": "x.yaml", "cases": {"a": {}}} if record is Study else {}
    with pytest.raises(UserError, match=key) as refused:
        validated(record, Settings({**needed, **tree(value)}, "in x.yaml"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [True, "many", float("nan"), float("inf"), [1]], ids=repr)
def test_a_number_of_the_paper_is_a_number(value):
    tree = {"title": "x", "base": "x.yaml", "cases": {"a": {}}, "paper": {"row": {"column": value}}}
    with pytest.raises(UserError, match=r"paper\.row\.column in x\.yaml: must be a"):
        validated(Study, Settings(tree, "in x.yaml"))


@pytest.mark.parametrize(("value", "number"), [("1e-3", 1e-3), (".5", 0.5), (1, 1.0), ("2", 2.0)])
def test_a_number_may_stand_in_quotes(value, number):
    config = validated(ExperimentConfig, Settings({"training": {"learning_rate": value}}, "in x.yaml"))
    assert config.training.learning_rate == number


@pytest.mark.parametrize("value", [1000, 1e3, "1000"])
def test_a_whole_number_may_be_written_as_any_number(value):
    config = validated(ExperimentConfig, Settings({"training": {"num_rounds": value}}, "in x.yaml"))
    assert config.training.num_rounds == 1000
    with pytest.raises(UserError, match=r"training.num_rounds in x.yaml: must be a whole number, got 2.5"):
        validated(ExperimentConfig, Settings({"training": {"num_rounds": 2.5}}, "in x.yaml"))
