"""The scanned digits that scikit-learn brings."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from l2t_ray.extras import Need, need


def digit_scans() -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """Scans and labels, from the file that scikit-learn's `load_digits` reads.

    Without importing scikit-learn, which costs each process seconds of start-up.

    Raises:
        UserError: if scikit-learn is absent.
    """
    need(Need("sklearn", "the set of digits"))
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",")
    # The scans count ink dots, 0..16.
    return np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), table[:, -1].astype(np.int64)
