"""Plain values come out of YAML, whatever the file would like to be."""

import os
import time

import pytest
import yaml

from l2t_ray.interfaces import UserError
from l2t_ray.settings import yaml_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("+3", 3),
        ("yes", True),
        ("~", None),
        ("", None),
        (".inf", ".inf"),
        ("-.Inf", "-.Inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("1e-30", 1e-30),
        ("1:30", "1:30"),  # ninety, in YAML 1.1
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{1: a, yes: b}", {"1": "a", "yes": "b"}),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, c: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("{a: {<<: [{b: 1}, {b: 2, c: 2}]}}", {"a": {"b": 1, "c": 2}}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_a_value_is_what_it_looks_like(text, value):
    assert yaml_file.parse(text, source="x")[0] == value


@pytest.mark.parametrize(
    "text", ["1e3", "1:30", "yes", "007", "0o7", "", "~", ".inf", "a: b", "#x", "é\n", "2024-01-01"]
)
def test_what_is_written_is_read_as_the_same(text):
    for tree in ({"a": text}, {text: 1}, {"a": [text, 1e-30, 10**20, None, True]}):
        assert yaml_file.parse(yaml_file.dump(tree), source="x")[0] == tree


def test_every_key_has_its_line():
    _, lines = yaml_file.parse("a: 1\n\nb:\n  c: [x, {d: 2}]\n", source="x")
    assert lines == {("a",): 1, ("b",): 3, ("b", "c"): 4, ("b", "c", "1", "d"): 4}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"its aliases unfold to more than 20,000 values \(line"),
        ("a: &a [*a]", "its aliases unfold more than 40 deep"),
        ("a: &a {b: *a}", "its aliases unfold more than 40 deep"),
        ("a: &a {<<: *a}", "its aliases unfold"),
        ("[" * 50_000, "nested more than 40 deep"),
        ("- " * 5_000, "nested more than 40 deep"),
        ("{a: " * 100, "nested more than 40 deep"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"the key 'c' stands twice in the same section \(line 4, column 3\)"),
        ("{a: 1, 'a': 2}", "the key 'a' stands twice"),
        ("? [1]\n: 2", "a key must be a word"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: !!int x", "could not determine a constructor for the tag"),
        ("a: !!timestamp x", "could not determine a constructor for the tag"),
        ("a: ! x", "could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a:\n\tb: 1", r"found character '\\t' that cannot start any token \(line 2, column 1\)"),
        ("a: *b", "found undefined alias 'b'"),
        ("<<: 1", "<< takes a mapping"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_no_text_takes_more_than_a_moment_or_a_sentence(text, message):
    began = time.monotonic()
    with pytest.raises(UserError, match=f"x.yaml is not valid YAML: .*{message}") as refused:
        yaml_file.parse(text, source="x.yaml")
    assert time.monotonic() - began < 5
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_a_number_of_many_digits_is_text():
    assert yaml_file.parse("9" * 5000, source="x")[0] == "9" * 5000  # Python refuses to read it as a number


def test_what_is_no_file_of_a_configurations_size_is_refused_without_waiting(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "big").write_text("#" * 200_001)
    (tmp_path / "utf16").write_text("a: 1", encoding="utf-16")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("none", "No such file"),
        ("loop", "Too many levels of symbolic links"),
        (".", "it is a directory"),
        ("pipe", "it is no regular file"),
        ("big", "larger than 200,000 bytes"),
        ("utf16", "not a text file in UTF-8"),
        ("a\0b", "that is no file name"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            yaml_file.read(tmp_path / name)
    with pytest.raises(UserError, match="it is no regular file"):
        yaml_file.read(tmp_path / "/dev/zero")


def test_shipped_files_mean_what_they_mean_to_everybody_else():
    """YAML 1.1 and 1.2 differ in a few spellings; none of them is in a file of ours, but for numbers like 1e-3."""
    for path in sorted((yaml_file.Path(__file__).parents[1] / "configs").rglob("*.yaml")):
        assert yaml_file.read(path)[0] == yaml.safe_load(path.read_text()), path
