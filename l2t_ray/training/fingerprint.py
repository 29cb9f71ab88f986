"""What an experiment computes, so that two can be told apart whatever they are called.

A fingerprint has `settings` by dotted key, checksums of `data` by part, and the versions of the `code`. Two are of the
same experiment if settings and data agree; the code is there to be read.
"""

from collections.abc import Mapping
from typing import Any

Fingerprint = Mapping[str, Mapping[str, Any]]
COMPARED = ("settings", "data")
_LONGEST = 60
_ABSENT = "not set"


def difference(there: Fingerprint, here: Fingerprint) -> str | None:
    """The first thing in which two experiments differ, in words; None if they compute the same."""
    for section in COMPARED:
        old, new = there.get(section, {}), here.get(section, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                if section == "data":
                    return f"the {key} are others"
                return f"{key} is {_shown(old, key)} there and {_shown(new, key)} here"
    return None


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return _ABSENT
    text = str(values[key])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
