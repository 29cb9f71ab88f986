import os
from pathlib import Path

import pytest


@pytest.fixture
def real_root() -> Path:
    """The folder with real files in torchvision's layout."""
    if not os.environ.get("L2T_DATA"):
        pytest.skip("L2T_DATA names no folder with real image files")
    return Path(os.environ["L2T_DATA"])
