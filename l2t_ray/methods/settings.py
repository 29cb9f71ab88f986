"""What every method is: settings, and how a training is built from them.

A method is one file of this package. It holds a subclass of `MethodSettings` with the method's settings as fields, and
overrides what is different about it: `fixed_loss`, where it changes nothing but the loss; `build`, where it does
something else in a round; `phases`, where it does different things in the course of the training. One line in
`registry.METHODS` adds it to the configuration; a class of one's own is named by its import path instead.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.student import RowLoss, cross_entropy
from l2t_ray.core.teacher import LocalTeacher
from l2t_ray.interfaces import Method, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.parts import LossFacts, Parts
from l2t_ray.methods.phases import Phase, rounds_of
from l2t_ray.methods.schedules import PaperSchedule
from l2t_ray.settings.record import PathNamed, Share


class MethodSettings(PathNamed):
    """A method: its name, its settings, and what else the validation images are used for."""

    paper_schedule: ClassVar[PaperSchedule | None] = None
    """The schedule of the method's own paper; None: none is known."""
    has_teacher: ClassVar[bool] = False
    """Whether a teacher rewrites its loss. A run on Ray has one teacher, so such a method cannot be a control there."""

    goes_by_images: ClassVar[bool] = False
    """Whether it is for tasks in which each example is one row alone: no pixel, box or word."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"clean_images": {"judge": "validate"}}

    name: str
    label: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=60)] | None = None
    """Name in tables and figures, unique among the arms; null: made from what it is (`name`) and `clean_images`."""
    clean_images: Literal["validate", "mixed", "fine_tuned", "trusted"] = "validate"
    """What the validation images are for. `validate`: they are validated on, and no more; `mixed`: they are training
    images as well, with their validation labels; `fine_tuned`: as `validate`, but the last rounds train on them alone,
    with plain cross-entropy; `trusted`: as `validate`, but in the last rounds they are trained on as well, with plain
    cross-entropy, while the noisy ones go on under the method's loss. (`l2t_dln` then validates on one fold of them
    and trains on the others, and the folds take turns, each for a pass through the images; `static_dln` trains on
    all of them. Where these two have warm rounds, it begins after those.)"""
    fine_tuning_share: Share = 0.2
    """Share of the rounds that `fine_tuned` gives to the validation images."""
    trusted_share: Share = 0.7
    """Share of the rounds in which `trusted` trains on the validation images as well. `l2t_dln`, and `static_dln` with
    warm rounds, do so from the end of these on instead."""

    @property
    def called(self) -> str:
        """What it is called in tables and figures without a label, where the validation images are validated on."""
        return self.name.rpartition(":")[2]

    @property
    def arm(self) -> str:
        """The name in tables and figures."""
        return self.label or (self.called if self.clean_images == "validate" else f"{self.called}-{self.clean_images}")

    @property
    def trains_on_validation(self) -> bool:
        """Whether validation images are ever trained on."""
        return self.clean_images != "validate"

    @property
    def needs_clean_validation_labels(self) -> bool:
        """Whether the validation labels must be clean because the method learns from them which others are wrong."""
        return False

    @property
    def needs_forward_derivatives(self) -> bool:
        """Whether the student is differentiated forward, which a batch norm over all workers cannot be."""
        return False

    def fixed_loss(self, parts: Parts) -> RowLoss | None:
        """The loss of a method that has a fixed one; None: it has none."""
        del parts
        return None

    def class_counts(self, parts: Parts) -> Int[np.ndarray, " c"]:
        """How many of the labels that its own loss reads each class has (`Parts.class_counts`).

        (Where validation images are trained on under another loss than the method's own, they do not count.)
        """
        return parts.class_counts(with_validation=self.clean_images == "mixed")

    def build(self, parts: Parts) -> Method:
        """The method itself, as it is when no validation image is trained on.

        Raises:
            UserError: if the class defines none.
        """
        loss = self.fixed_loss(parts)
        if loss is None:
            raise UserError(
                f"method {self.name!r} says not what it does; define fixed_loss, build or phases in its class."
            )
        return FixedLoss(parts.trainee, loss)

    def plain(self, parts: Parts) -> Method:
        """What clean images are trained with, where they are trained on alone."""
        return FixedLoss(parts.trainee, cross_entropy)

    def phases(self, parts: Parts) -> list[Phase]:
        """The whole training: the method, and what `clean_images` adds to it.

        Raises:
            UserError: if noisy images are to go on under the method's loss at the end, and it has none.
        """
        data = parts.source.mixed() if self.clean_images == "mixed" else parts.source.plain()
        return [Phase(0, self.build(parts), data), *self.ending(parts)]

    def ending(self, parts: Parts) -> list[Phase]:
        """The last rounds, where `clean_images` gives them to the validation images.

        These are under plain cross-entropy: a loss that was learned to distrust labels would learn too little from
        them.

        Raises:
            UserError: if noisy images are to go on under the method's loss, and it has none.
        """
        if self.clean_images == "fine_tuned":
            return [Phase(self.ending_start(parts.num_rounds), self.plain(parts), parts.source.validation_alone())]
        if self.clean_images == "trusted":
            loss = self.fixed_loss(parts)
            if loss is None:
                raise UserError(
                    f"clean_images 'trusted' needs a method with a loss of its own, and {self.name!r} has none; "
                    "set clean_images=mixed or fine_tuned."
                )
            method = FixedLoss(parts.trainee, loss, is_clean=parts.is_clean)
            return [Phase(self.ending_start(parts.num_rounds), method, parts.source.mixed())]
        return []

    def ending_start(self, num_rounds: int) -> int:
        """The round from which validation images are trained on."""
        share = self.fine_tuning_share if self.clean_images == "fine_tuned" else self.trusted_share
        return num_rounds - rounds_of(share, num_rounds)

    def new_teacher(self, facts: LossFacts) -> LocalTeacher:
        """The teacher at its beginning, with the loss's first weights.

        Raises:
            UserError: if the class defines none.
        """
        del facts
        raise UserError(f"method {self.name!r} is said to have a teacher; define new_teacher in its class.")

    def learned_loss(self, phi: Float[Tensor, " m"], facts: LossFacts) -> LearnedLoss | None:
        """The loss with these weights, to be written as a file; None: the method learns none."""
        del phi, facts
        return None
