"""The section `student`: each student's settings are the keyword arguments of the function that makes it."""

from typing import Any, ClassVar

from l2t_ray.settings.record import FilePath
from l2t_ray.settings.signature import MadeSettings, Maker, factory, own_made, record_of, takes
from l2t_ray.students.known import STUDENTS

SHAPE = ("num_classes", "in_channels", "image_size")
"""Arguments that follow from the data."""


class StudentSettings(MadeSettings):
    """What every student has. The rest is its own."""

    maker: ClassVar[Maker] = Maker("student", "a module", STUDENTS, SHAPE)

    sync_batchnorm: bool = False
    """Batch statistics of the global minibatch instead of each worker's own slice."""
    initial_weights: FilePath | None = None
    """A state dict that the student begins with, `.safetensors` or of `torch.save`, of all of it or of its `backbone`;
    null: its weights are drawn."""


def student_record(name: str) -> type[StudentSettings]:
    """The settings of a student, from the signature of the function that makes it.

    Raises:
        ValueError: as `signature.record_of`.
    """
    return record_of(StudentSettings, name)


def settings_of(name: Any) -> frozenset[str]:
    """The keys of a student's section; of a student that is not known, those that all have."""
    try:
        return frozenset(student_record(name).model_fields)
    except (ValueError, KeyError, TypeError):  # which is said when the section is read
        return frozenset(StudentSettings.model_fields)


def own_student(section: Any) -> type[StudentSettings] | None:
    """The settings of a student that the user brings; None: the section names another one, or none.

    Raises:
        ValueError: as `student_record`.
    """
    return own_made(StudentSettings, section)


def lacking_of_images(name: str) -> list[str]:
    """What follows from images, and is no argument of the function that makes a student."""
    given = takes(factory(StudentSettings, name), dict.fromkeys(SHAPE))
    return [key for key in SHAPE if key not in given]
