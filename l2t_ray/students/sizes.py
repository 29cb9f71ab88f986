"""Types of a student's settings, beyond Python's own, that a configuration checks."""

from typing import Annotated

Ratio = Annotated[float, "above 0"]
"""A size or a factor."""
