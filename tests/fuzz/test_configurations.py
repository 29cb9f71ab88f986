"""Any value for any key, any damage to a file: a tiny run ends with finite numbers, or a sentence says why not."""

import json
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from harness import in_child, in_place, judged
from pydantic import BaseModel

from l2t_ray.exit_codes import exit_codes
from l2t_ray.interfaces import UserError
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.studies.declaration import Study, load_study

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "configs/digits.yaml"
TINY = (
    *("ray.enabled=false", "tracking.mlflow=false", "data.download=false", "student.name=lenet", "name=tiny"),
    *("training.num_rounds=2", "training.num_steps=2", "training.batch_size=8", "training.val_batch_size=20"),
    *("training.eval_every=10", "training.checkpoint_every=10", "method.loss.init=released"),
)
NUMBERS = (
    *("true", "yes", "null", "", ".nan", ".inf", "-.inf", "nan", "-1", "0", "1", "2", "3", "0.5", "0.999", "1.0"),
    *("1e-3", "1e30", "1e300", "1e-300", "-0.0", "9" * 40, "9" * 5000, "'3'", "0x10", "0o7", "1_000", "1:30", "007"),
    *("[]", "[1]", "[0.5, 0.75]", "[0.75, .nan]", "[[1]]", "{}", "{a: 1}", "many", "2 # two", "+5", "3.", "1e", "--1"),
)
TEXTS = (
    *("''", "x", "é", "a b", "a#b", "a #b", "../x", "/proc/none", "~nobody-here/x", "a" * 300, "a" * 5000, "'a\\nb'"),
    *('"a\\0b"', "2024-01-01", "!!int 3", "&a [*a]", "*a", "a: b: c", "[" * 200, "{" * 50, "- 1", "? x", "|", "%x"),
    *("@x", "`x`", "$HOME", "\t", "\udcff", "gce", "{name: gce, q: 9}", "[gce, gce]", "off", "!x", "<<: 1", "{<<: 1}"),
)
UNREACHABLE = ("ray.", "tracking.mlflow", "tracking.uri", "storage", "data.download", "name", "device", "runs")
"""Keys whose good values start something else than a tiny run; `test_command_lines.py` has these."""


def keys(record: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a record, of all variants."""
    for name, field in record.model_fields.items():
        yield prefix + name
        for section in _records(field.annotation):
            if name != "controls":
                yield from keys(section, f"{prefix}{name}.")


def _records(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in getattr(annotation, "__args__", ()) for record in _records(part)]


def options(record: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The words that each key takes, where it takes some and no others."""
    for name, field in record.model_fields.items():
        if get_origin(field.annotation) is Literal:
            yield from ((prefix + name, option) for option in get_args(field.annotation))
        for section in _records(field.annotation):
            yield from options(section, f"{prefix}{name}.")


KEYS = sorted({key for key in keys(ExperimentConfig) if not key.startswith(UNREACHABLE)})
METHODS = {
    method.model_fields["name"].default: set(keys(method))
    for method in _records(ExperimentConfig.model_fields["method"].annotation)
}


OPTIONS: dict[str, list[str]] = {}
for _key, _option in options(ExperimentConfig):
    OPTIONS.setdefault(_key, []).append(_option)
PLAUSIBLE = ("1", "2", "3", "5", "10", "0.1", "0.5", "0.9", "1e-3", "true", "false", "null")


def value_for(key: str, generator: random.Random) -> str:
    if generator.random() < 0.4:
        return generator.choice(OPTIONS.get(key, PLAUSIBLE))
    return generator.choice(NUMBERS if generator.random() < 0.7 else TEXTS)


def overrides(generator: random.Random) -> list[str]:
    """Settings of a tiny run, one or two of them out of the ordinary."""
    chosen, base = [], list(TINY)
    for _ in range(generator.choice((1, 1, 1, 2))):
        key = generator.choice(KEYS)
        methods = [name for name, known in METHODS.items() if key.removeprefix("method.") in known]
        if not chosen and methods and generator.random() < 0.9 and "l2t_dln" not in methods:
            chosen += [f"method={generator.choice(methods)}", "controls=[]"]
            base = [setting for setting in base if not setting.startswith("method.")]
        if generator.random() < 0.03:
            key = generator.choice(("", ".", "a..b", key + ".x", key[:-1], key.upper(), f" {key}", "controls.0.q", "é"))
        value = value_for(key, generator)
        if key.startswith("training.num_") and value == "1_000":
            value = "10"
        chosen.append(f"{key}={value}")
    return [*base, *chosen]


def train(settings: list[str]) -> None:
    with exit_codes():
        from l2t_ray.run import Experiment

        Experiment.from_yaml(DIGITS, settings).run(quiet=True, figures=False)


def is_finite(directory: Path) -> bool:
    """Whether the run that is in the directory has ended with numbers that are numbers."""
    (path,) = directory.glob("runs/*/summary.json")
    summaries = json.loads(path.read_text())
    return bool(summaries) and all(
        summary["rounds"] >= 1
        and 0 <= summary["test_accuracy"] <= 1
        and math.isfinite(summary["test_error"])
        and math.isfinite(summary["val_error"])
        for summary in summaries
    )


def try_configurations(tally, tmp_path: Path, number: int, seed: int) -> None:
    generator = random.Random(seed)
    for index in range(number):
        settings, directory = overrides(generator), tmp_path / str(index)
        read = partial(configuration.load, DIGITS, settings)
        verdict, seen = in_place(read, lambda config: True, refusals=(UserError,))
        if verdict == "right":  # so far: what can be read is tried as well
            directory.mkdir()
            ending = in_child(train, [settings], directory)
            verdict, seen = judged(ending, partial(is_finite, directory)), ending.err + ending.out
        tally.add(settings[len(TINY) - 1 :], verdict, seen)


def test_a_tiny_run_ends_well(tmp_path):
    """Otherwise nothing below would be right."""
    ending = in_child(train, [list(TINY)], tmp_path)
    assert ending.code == 0, ending.err
    assert is_finite(tmp_path)


def test_any_value_for_any_key(tally, tmp_path):
    counted = tally("configuration keys x values")
    try_configurations(counted, tmp_path, number=30, seed=0)
    counted.check(at_least=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_value_for_any_key_at_length(tally, tmp_path):
    counted = tally("configuration keys x values")
    try_configurations(counted, tmp_path, number=1_000, seed=1)
    counted.check(at_least=1_000)


# -- files

TOKENS = (
    *(":", "- ", "  ", "\t", "\n", "#", "'", '"', "{", "}", "[", "]", "&a ", "*a", "!!int ", "<<: ", "---\n", "...\n"),
    *(
        "? ",
        "| ",
        "> ",
        "%",
        "@",
        "`",
        "\0",
        "\x85",
        "\ufeff",
        "\udcff",
        "é",
        "9" * 5000,
        "[" * 100,
        "extends: ",
        "null",
    ),
    *("a: &a [*a]\n", "training: {num_rounds: 3}\n", "seed: true\n", "seed: .nan\n", "true", ".inf", "1e-3", "-1"),
)


def damaged(text: str, generator: random.Random) -> bytes:
    """A file with one to three faults such as people and disks make."""
    for _ in range(generator.choice((1, 1, 2, 3))):
        lines = text.splitlines(keepends=True) or [""]
        row, place = generator.randrange(len(lines)), generator.randrange(len(text) + 1)
        match generator.choice(("token", "token", "cut", "double", "drop", "indent", "value", "character")):
            case "token":
                text = text[:place] + generator.choice(TOKENS) + text[place:]
            case "cut":
                text = text[:place]
            case "double":
                text = "".join([*lines[: row + 1], *lines[row:]])
            case "drop":
                text = "".join([*lines[:row], *lines[row + 1 :]])
            case "indent":
                text = "".join([*lines[:row], generator.choice((" ", "\t", "    ")) + lines[row], *lines[row + 1 :]])
            case "value":
                key, separator, _ = lines[row].partition(":")
                lines[row] = f"{key}{separator} {generator.choice(NUMBERS + TEXTS)}\n"
                text = "".join(lines)
            case "character":
                text = text[:place] + chr(generator.randrange(1, 0x250)) + text[place + 1 :]
    data = text.encode("utf-8", errors="surrogateescape")
    if generator.random() < 0.1:
        data = data.decode(errors="replace").encode(generator.choice(("utf-16", "utf-8-sig", "utf-32")))
    return data


def comes_back(config: ExperimentConfig | Study) -> bool:
    """Whether what was read is written as something that reads the same."""
    from l2t_ray.settings import yaml_file

    tree, _ = yaml_file.parse(config.to_yaml(), source="what was written")
    return type(config).model_validate(tree) == config


def try_files(tally, tmp_path: Path, number: int, seed: int) -> None:
    generator = random.Random(seed)
    experiments = [
        path for path in sorted((REPOSITORY / "configs").glob("*.yaml")) if "extends" not in path.read_text()
    ]
    studies = sorted((REPOSITORY / "configs/studies").glob("*.yaml"))
    path = tmp_path / "damaged.yaml"
    for _ in range(number):
        is_study = generator.random() < 0.3
        original = generator.choice(studies if is_study else experiments)
        path.write_bytes(damaged(original.read_text(), generator))
        read = load_study if is_study else configuration.load
        verdict, seen = in_place(lambda read=read: read(path), comes_back, refusals=(UserError,))
        tally.add(path.read_bytes()[-1500:], verdict, seen)


def test_any_damage_to_a_file(tally, tmp_path):
    counted = tally("YAML files, damaged")
    try_files(counted, tmp_path, number=150, seed=0)
    counted.check(at_least=150)


@pytest.mark.slow
def test_any_damage_to_a_file_at_length(tally, tmp_path):
    counted = tally("YAML files, damaged")
    try_files(counted, tmp_path, number=6_000, seed=1)
    counted.check(at_least=6_000)
