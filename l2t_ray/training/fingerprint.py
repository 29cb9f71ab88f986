"""What an experiment computes, so that two can be told apart whatever they are called.

A fingerprint has `settings` by dotted key, checksums of `data` by part, and of the `code` the versions of packages and
the checksums of the user's own modules. Two are of the same experiment if settings and data agree. Code may be mended
while a run is stopped; whose it is that has changed is said when the run goes on.
"""

from collections.abc import Mapping
from typing import Any

Fingerprint = Mapping[str, Mapping[str, Any]]
COMPARED = ("settings", "data")
_VERSIONS = {"l2t_ray", "torch"}
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


def changed_modules(there: Fingerprint, here: Fingerprint) -> list[str]:
    """The modules of the user's own that are in both, and are not the same."""
    old, new = there.get("code", {}), here.get("code", {})
    return sorted(name for name in old.keys() & new.keys() - _VERSIONS if old[name] != new[name])


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return _ABSENT
    text = str(values[key])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
