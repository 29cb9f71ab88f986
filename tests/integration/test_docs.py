"""The documents keep their word: names in the notation are in the code, the log's index has every entry."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from pages import PAGES

import l2t_ray

DOCS = Path(__file__).parents[2] / "docs"
NOTATION = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (DOCS / "notation.md").read_text().splitlines()
    if re.search(r"\.py` `", line)
]
VERDICTS = ("helped", "did not help", "open", "fact")


def slug(heading):
    """The anchor that a heading has on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("row", NOTATION, ids=lambda row: row[0])
def test_each_symbol_of_the_notation_is_where_it_says(row):
    """The class or function is in its module, and the module's text has the name."""
    _, _, names, equation, where = row
    (place, home), *others = re.findall(r"`([\w/]+)\.py` `(\w+)`", where)
    assert not others
    assert hasattr(import_module(f"l2t_ray.{place.replace('/', '.')}"), home)
    text = (DOCS.parent / "l2t_ray" / f"{place}.py").read_text()
    assert [name for name in re.findall(r"`([\w.]+)`", names) if not re.search(rf"\b{re.escape(name)}\b", text)] == []
    assert equation


def test_the_notation_has_its_symbols():
    assert {"theta", "phi", "psi", "e", "g", "K", "beta"} <= {row[0] for row in NOTATION}


def test_each_entry_of_the_log_has_a_verdict_and_a_line_of_the_index():
    text = (DOCS / "log.md").read_text()
    entries = re.findall(r"^### (.*)\n\n\*\*([a-z ]+)\*\* · ", text, re.MULTILINE)
    dates, date = [], None
    for line in text.splitlines():
        date = line.removeprefix("## ") if line.startswith("## ") else date
        if line.startswith("### "):
            dates.append(date)
    assert len(entries) == text.count("\n### ") > 10
    assert {verdict for _, verdict in entries} <= set(VERDICTS)
    index = re.findall(r"^\| ([\d-]+) \| \[(.*)\]\(#(.*)\) \| ([a-z ]+) \| .+ \|$", text, re.MULTILINE)
    assert index == [(day, head, slug(head), verdict) for day, (head, verdict) in zip(dates, entries, strict=True)]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_the_documents_lead_somewhere(page):
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        file = (page.parent / target) if target else page
        if not file.exists():
            broken.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            objects = re.findall(r"^::: (.*)$", file.read_text(), re.MULTILINE)
            broken += [] if anchor in {*map(slug, headings), *objects} else [f"{target}#{anchor}"]
    assert broken == []


def documented(page):
    return set(re.findall(r"^::: (.*)$", PAGES[page].text, re.MULTILINE))


def test_the_reference_has_every_public_name():
    assert documented("docs/reference.md") == {f"l2t_ray.{name}" for name in l2t_ray.__all__}


def test_the_reference_has_every_module_that_the_pages_import_from_or_send_their_reader_to():
    imported = {
        module
        for page in PAGES.values()
        for block in page.python
        for module in re.findall(r"^from (l2t_ray\.[\w.]+) import", block.text, re.MULTILINE)
    }
    named = re.findall(r"`\w+` in\s+`(l2t_ray/[\w/]+)\.py`", PAGES["docs/extending.md"].text)
    assert len(imported) > 10 and len(named) > 10
    assert imported | {path.replace("/", ".") for path in named} <= documented("docs/reference_parts.md")
