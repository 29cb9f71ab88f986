"""A learned loss as one file: safetensors, with family and architecture in its header and a checksum over all.

A file may come from anywhere. So its sizes are compared with each other before anything is built from them, and a file
that was cut, changed, or written by a newer version is refused with a sentence.
"""

import hashlib
import json
import math
import os
import re
import stat
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.files import replaced

FORMAT = "l2t_ray.loss/3"
ENTRIES = {
    "l2t_ray.loss/1": {"format", "spec"},
    "l2t_ray.loss/2": {"format", "spec", "sha256"},
    FORMAT: {"format", "family", "spec", "sha256"},
}
"""What the header of each format holds. The older ones, written until 2026-11, are read still."""
OLD_FAMILY = "pairs"
"""Of the formats that name none."""
LARGEST_HEADER = 2**20
SMALL = 1024
"""A size that is harmless whatever the number of weights."""


def write(path: str | Path, family: str, spec: Mapping[str, Any], phi: Float[Tensor, " m"]) -> None:
    """Writes a loss in single precision. A file that was there stays whole until the new one is.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
        ValueError: if its architecture is too large to be read again.
    """
    from safetensors.torch import save

    path = Path(path)
    weights, text = phi.detach().cpu().float().contiguous(), json.dumps(dict(spec))
    if len(text) > LARGEST_HEADER // 2:
        raise ValueError(f"a loss file's architecture must be below {LARGEST_HEADER // 2:,} bytes, got {len(text):,}.")
    checksum = _checksum(FORMAT, [family, text], weights.numpy().astype("<f4").tobytes())
    metadata = {"format": FORMAT, "family": family, "spec": text, "sha256": checksum}
    with replaced(path) as temporary:
        temporary.write_bytes(save({"phi": weights}, metadata))


def read(path: str | Path, families: Mapping[str, type]) -> tuple[str, Any, Float[Tensor, " m"]]:
    """Family, architecture and weights of a file that `write` wrote.

    Args:
        families: by name, those that may be read, with the type of their architecture: a dataclass of plain values
            that knows its `num_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds something else, is of another family, or of a newer version.
    """
    path = Path(path)
    header, data = _parts(path)
    metadata, count = header.get("__metadata__"), len(data) // 4
    if not isinstance(metadata, dict) or not str(metadata.get("format")).startswith("l2t_ray.loss/"):
        raise ValueError(f"{path} is not a learned loss: expected format {FORMAT!r} in its header.")
    _check_format(path, metadata["format"])
    if metadata.keys() != ENTRIES[metadata["format"]]:
        raise _damaged(path, f"its header has the entries {', '.join(sorted(metadata))[:100]}")
    texts = [metadata[key] for key in ("family", "spec") if key in metadata]
    if not all(isinstance(text, str) for text in texts):
        raise _damaged(path, "its header holds something else than text")
    if "sha256" in metadata and metadata["sha256"] != _checksum(metadata["format"], texts, data):
        raise _damaged(path, "its checksum does not fit its content")
    wanted = {"dtype": "F32", "shape": [count], "data_offsets": [0, len(data)]}
    if header.keys() != {"__metadata__", "phi"} or header["phi"] != wanted or len(data) != 4 * count:
        raise _damaged(path, f"its header does not describe one vector of {count:,} weights in single precision")
    family = metadata.get("family", OLD_FAMILY)
    if family not in families:
        raise _of_other_family(path, family, families)
    spec = _spec(path, metadata["spec"], families[family], count)
    if spec.num_weights != count:
        raise ValueError(f"{path} is damaged: its architecture has {spec.num_weights} weights, the file holds {count}.")
    phi = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
    if not phi.isfinite().all():
        raise ValueError(f"{path} holds weights that are not finite: training had diverged when it was written.")
    return family, spec, phi


def _of_other_family(path: Path, family: str, families: Mapping[str, type]) -> ValueError:
    known = " or ".join(repr(name) for name in families)
    return ValueError(
        f"{path} holds a loss of the family {family[:40]!r}, and {known} was asked for; "
        "load it with l2t_ray.LearnedLoss.load, or update l2t_ray."
    )


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and weights."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no learned loss at {path}.") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise ValueError(f"{path} is {kind}; give the file of a learned loss.")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise _damaged(path, f"its header of {length:,} bytes does not fit a file of {size:,}")
        text = file.read(length)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            raise _damaged(path, "its header is no JSON") from None
        if not isinstance(header, dict):
            raise _damaged(path, "its header holds no keys")
        return header, file.read()


def _check_format(path: Path, name: Any) -> None:
    if name in ENTRIES:
        return
    if re.fullmatch(r"l2t_ray\.loss/[1-9]\d{0,5}", name):
        raise ValueError(f"{path} is of the format {name}, and this version reads up to {FORMAT}; update l2t_ray.")
    raise _damaged(path, f"its header names the format {name[:40]!r}")


def _spec(path: Path, text: Any, spec_type: type, count: int) -> Any:
    """The architecture, whose sizes are small or below the number of weights: nothing large is built from it."""
    try:
        fields = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise _damaged(path, "its architecture is no JSON") from None
    hints = get_type_hints(spec_type)
    if not isinstance(fields, dict):
        raise _damaged(path, "its architecture holds no keys")
    for key, value in fields.items():
        if key not in hints:
            raise ValueError(f"{path} has {key[:40]!r} in its architecture, which this version does not know.")
        is_size = isinstance(value, int) and hints[key] is not float
        if not _is_of(value, hints[key]) or (is_size and not 0 <= value <= max(count, SMALL)):
            raise _damaged(path, f"its architecture of {count:,} weights has {key}={str(value)[:40]}")
    try:
        return spec_type(**_without_lists(fields))
    except (TypeError, ValueError) as error:
        raise _damaged(path, f"its architecture is impossible: {str(error).rstrip('.')}") from None


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is_of(part, get_args(hint)[1]) for part in value.values())
    if get_origin(hint) is tuple:  # of any length: a list in JSON
        return isinstance(value, list) and all(_is_of(part, get_args(hint)[0]) for part in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _without_lists(value: Any) -> Any:
    """JSON knows no tuples, and an architecture does not change."""
    if isinstance(value, dict):
        return {key: _without_lists(part) for key, part in value.items()}
    return tuple(map(_without_lists, value)) if isinstance(value, list) else value


def _checksum(name: str, texts: Sequence[str], weights: bytes) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in (name, *texts)).encode() + weights).hexdigest()


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is not a learned loss, or is damaged: {what}.")
