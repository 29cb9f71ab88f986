"""The names that others rely on are reachable from the package itself, and cost nothing until they are used.

A file name stands for one file.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import l2t_ray

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", l2t_ray.__all__)
def test_a_public_name_is_there(name):
    assert getattr(l2t_ray, name).__name__.split(".")[-1] == name
    assert name in dir(l2t_ray)


def test_what_is_no_name_is_said_so():
    with pytest.raises(AttributeError, match="module 'l2t_ray' has no attribute 'fitt'"):
        l2t_ray.fitt  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, l2t_ray; print([m for m in ('torch', 'numpy', 'ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["l2t_ray", "tests"])
def test_no_two_files_have_one_name(folder):
    names = Counter(path.name for path in (ROOT / folder).rglob("*.py"))
    assert len(names) > 100
    assert [name for name, times in names.items() if times > 1 and name not in ("__init__.py", "conftest.py")] == []
