"""The notebook runs from top to bottom, and what is kept in it is what comes of its cells.

`make notebook` writes what a run came to into the file.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "docs/notebook.ipynb"
LARGEST = 300_000
"""Bytes; pages show it whole."""


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output):
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def without_numbers(notebook):
    """By cell, the kinds of its outputs and their words, however they were cut into pieces."""
    return [
        (
            sorted({kind for output in cell.outputs for kind in output.get("data", {})}),
            re.sub(r"[\d.\s]+", "#", "".join(map(text_of, cell.outputs))),
        )
        for cell in code_of(notebook)
    ]


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.read(PATH, as_version=4)
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place, record_timing=False).execute()
    if "L2T_NOTEBOOK" in os.environ:
        for cell in notebook.cells:
            cell.metadata.clear()
        notebook.metadata.language_info = {"name": "python"}  # without the version of this machine's
        nbformat.write(notebook, PATH)
    return notebook


def test_it_shows_that_the_learned_loss_finds_and_withstands_wrong_labels(executed):
    said = "\n".join(text_of(output) for cell in code_of(executed) for output in cell.outputs)
    plain, learned = map(float, re.search(r"test accuracy, % +([\d.]+) +([\d.]+)", said).groups())
    assert learned > 90 > plain
    assert float(re.search(r"most suspicious labels ([\d.]+) % are wrong", said)[1]) > 90
    alone, taken_along = map(float, re.findall(r": ([\d.]+) % of the test digits", said))
    assert taken_along > 90 > alone


def test_the_outputs_that_are_kept_are_those_of_the_cells(executed, kept):
    assert without_numbers(kept) == without_numbers(executed)
    assert [cell.execution_count for cell in code_of(kept)] == list(range(1, len(code_of(kept)) + 1))


def test_what_is_kept_is_small_and_says_nothing_of_a_machine(kept):
    assert PATH.stat().st_size < LARGEST
    texts = [cell.source for cell in kept.cells] + [text_of(out) for cell in code_of(kept) for out in cell.outputs]
    assert [text for text in texts if re.search(r"(?<![\w.])/(home|root|tmp|usr|var|opt|work)\b|\w:\\", text)] == []
    assert all(not cell.metadata for cell in kept.cells)
