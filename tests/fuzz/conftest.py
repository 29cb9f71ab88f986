"""Writes what the fuzzers came to into the documents, when `make fuzz` asks for it."""

import os
from pathlib import Path

import pytest
from harness import Tally, table

RELIABILITY = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- fuzz: written by `make fuzz` -->\n", "<!-- end of fuzz -->\n"
TALLIES = pytest.StashKey[dict[str, Tally]]()


@pytest.fixture
def tally(request):
    """`tally(kind)`: where the verdicts of one kind of input are counted, over all tests of a session."""
    tallies = request.config.stash.setdefault(TALLIES, {})
    return lambda kind: tallies.setdefault(kind, Tally(kind))


def pytest_sessionfinish(session):
    tallies = session.config.stash.get(TALLIES, {})
    if tallies and "L2T_FUZZ" in os.environ:
        before, rest = RELIABILITY.read_text().split(BEGIN)
        RELIABILITY.write_text(before + BEGIN + table(tallies.values()) + END + rest.split(END)[1])
