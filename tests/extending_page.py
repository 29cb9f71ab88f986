"""The files of docs/extending.md."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\w+)\.py -->\n```python\n(.*?)```", PAGE, re.DOTALL))
(OWN_YAML,) = re.findall(r"<!-- configuration: own\.yaml -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)


def write_files(directory: Path) -> None:
    """Puts every file of the page into the directory, side by side."""
    for name, text in FILES.items():
        (directory / f"{name}.py").write_text(text)
    (directory / "own.yaml").write_text(OWN_YAML)
