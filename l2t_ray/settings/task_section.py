"""The section `task`: a task of the user's own, by the import path of what makes it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic_core import PydanticCustomError

from l2t_ray.settings.signature import MadeSettings, Maker, own_made

FACTS = ("class_names", "num_classes")
"""Arguments that follow from the data."""


class TaskSettings(MadeSettings):
    """A task of one's own: the keyword arguments of the function or class that makes it."""

    maker: ClassVar[Maker] = Maker("task", "a task", {}, FACTS)


def own_task(value: Any) -> TaskSettings:
    """The settings of a task, from its import path or from a section that has that as its `name`.

    Raises:
        ValueError: as `signature.record_of`; or if it is no import path.
    """
    if isinstance(value, TaskSettings):
        return value
    section = {"name": value} if isinstance(value, str) else value
    record = own_made(TaskSettings, section)
    if record is None:
        if isinstance(section, Mapping) and "name" not in section:
            raise PydanticCustomError("task", "must name what makes it, as in task.name=my.module:make")
        raise PydanticCustomError(
            "task",
            "must be the import path of a task of your own, such as my.module:make; null: what the data is labelled "
            "with says",
        )
    return record.model_validate(section)
