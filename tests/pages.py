"""The pages of the documentation as tests use them: their Python, the files that they show, and their commands.

A block of Python belongs to what stands before it on its page: it sees the names of the blocks above. Above a block a
comment may say that it is something else:

    <!-- file: smoothing.py -->             a module beside the others of its page
    <!-- configuration: own.yaml -->        a file of settings
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:^<!-- (?:file|configuration): (?P<name>[\w.]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
LANGUAGES = {"", "bash", "json", "python", "sh", "yaml"}
_PROGRAMS = r"python jobs/|python benchmarks/|python -m l2t_ray|l2t |make |pip install "
_BETWEEN_WORDS = re.compile(rf"`((?:{_PROGRAMS})[^`\n]+)`")
_AT_ITS_BEGINNING = re.compile(rf"^(?:{_PROGRAMS}|import |from \w+ import )", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, and the name of the file that it is, if it is one."""

    language: str
    file: str | None
    text: str

    @property
    def is_untold(self) -> bool:
        """Whether it is something that a test would run or read, if it said which language it is in."""
        return self.language not in LANGUAGES or (not self.language and bool(_AT_ITS_BEGINNING.search(self.text)))


class Page:
    """A page by its path below the repository."""

    def __init__(self, name: str):
        self.name = name
        self.text = (ROOT / name).read_text()
        self.blocks = [
            Block(found["language"], found["name"], dedent(found["text"])) for found in _BLOCK.finditer(self.text)
        ]

    @property
    def python(self) -> list[Block]:
        return [block for block in self.blocks if block.language == "python"]

    @property
    def files(self) -> dict[str, str]:
        return {block.file: block.text for block in self.blocks if block.file is not None}

    @property
    def modules(self) -> list[str]:
        """Names of the files that can be imported, in the page's order."""
        return [name.removesuffix(".py") for name in self.files if name.endswith(".py")]

    def write_files(self, directory: Path) -> None:
        """Puts every file of the page into the directory, side by side."""
        for name, text in self.files.items():
            (directory / name).write_text(text)

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, and of those between the words of a sentence; without comments.
        Commands that are joined on one line are apart."""
        lines = [line for block in self.blocks if block.language in ("sh", "bash") for line in _logical(block.text)]
        lines += [shlex.split(command, comments=True) for command in _BETWEEN_WORDS.findall(self.text)]
        return [command for line in lines for command in _apart(line)]

    @contextmanager
    def placed(self, directory: Path) -> Iterator[None]:
        """Puts the page's files into a directory. Until the context ends it is the current one, and modules are found
        there."""
        self.write_files(directory)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(directory)
            patch.chdir(directory)
            try:
                yield
            finally:
                for module in self.modules:
                    sys.modules.pop(module, None)

    @contextmanager
    def ran(self, directory: Path, given: Mapping[str, Any] | None = None) -> Iterator[SimpleNamespace]:
        """Runs all of the page's Python in its order, in a directory that has its files (`placed`).

        Args:
            given: names that the page says the reader has.

        Yields:
            `names`, as the blocks left them, and `modules` by name.
        """
        names: dict[str, Any] = {"__name__": self.name, **(given or {})}
        modules: dict[str, ModuleType] = {}
        with self.placed(directory):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                for block in self.python:
                    if block.file is None:
                        exec(compile(block.text, self.name, "exec"), names)
                    else:
                        module = block.file.removesuffix(".py")
                        modules[module] = import_module(module)
            yield SimpleNamespace(names=names, modules=modules)


def _logical(text: str) -> Iterator[list[str]]:
    """The words of each command line; one goes on where it ends with a backslash or within quotation marks."""
    begun = ""
    for line in text.splitlines():
        begun = f"{begun}{line}\n"
        if line.endswith("\\"):
            begun = begun[:-2] + " "
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation is open
            continue
        begun = ""
        if words:
            yield words
    assert begun == "", f"a command that has no end: {begun}"


def _apart(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word in ("&&", ";", "|"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


PAGES = {
    name: Page(name)
    for name in [
        "README.md",
        "benchmarks/README.md",
        *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ]
}
