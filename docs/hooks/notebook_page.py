"""Shows the notebook as a page of the site, with the outputs that were kept in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NOTEBOOK, PAGE = "notebook.ipynb", "notebook.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    cells = json.loads(Path(config.docs_dir, NOTEBOOK).read_text())["cells"]
    text = "\n\n".join(part for cell in cells for part in _parts(cell))
    files.append(File.generated(config, PAGE, content=f"{text}\n\n[This notebook as a file]({NOTEBOOK})\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of other pages to the file lead to its page."""
    return markdown if page.file.src_uri == PAGE else markdown.replace(f"]({NOTEBOOK})", f"]({PAGE})")


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    """A cell in Markdown: its text, or its code and what came of it."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="what the cell above draws" src="data:image/png;base64,{data["image/png"].strip()}">'
        else:
            lines = "".join(output.get("text") or data.get("text/plain", ""))
            yield f"```text\n{lines.rstrip()}\n```"
