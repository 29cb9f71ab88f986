"""Learn the loss while Lightning trains: `pip install 'l2t_ray[lightning]'`.

>>> learn_loss = LearnLoss((clean_images, clean_labels))
>>> lightning.Trainer(max_epochs=10, callbacks=[learn_loss]).fit(module, noisy_images)
>>> learn_loss.loss.save("loss.safetensors")
"""

import math
from collections.abc import Mapping
from typing import Any

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.extras import needed_by
from l2t_ray.interfaces import UserError
from l2t_ray.loops.loss_teacher import WARM_SHARE, LossTeacher

with needed_by("l2t_ray.lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer


class LearnLoss(Callback):
    """Puts a learned criterion in the place of the module's own while it is fitted.

    What `training_step` calls as `self.criterion(logits, labels)` is the learned loss then; the module's own is back
    afterwards. The module's optimizer, precision, schedules and clipping are the trainer's, its checkpoints hold the
    learned loss, and its logger gets the numbers `learned_loss/...`.

    Args:
        validation: clean examples (see `LossTeacher`).
        criterion: the module's attribute with its own loss.
        warm_steps: see `LossTeacher`; None: 15 % of all.
        options: of `LossTeacher`. By itself it asks the module's `forward` for logits, and takes the trainer's
            `gradient_clip_val`.

    Raises:
        UserError: when the fit begins, if the module cannot be trained so.
    """

    def __init__(self, validation: Any, *, criterion: str = "criterion", warm_steps: int | None = None, **options: Any):
        self._validation, self._attribute, self._warm_steps, self._options = validation, criterion, warm_steps, options
        self._teacher: LossTeacher | None = None
        self._own_criterion: Any = None
        self._state: Mapping[str, Any] | None = None
        """Of a checkpoint, until there is a teacher to take it."""

    @property
    def teacher(self) -> LossTeacher:
        """
        Raises:
            UserError: if nothing has been fitted yet.
        """
        if self._teacher is None:
            raise UserError("no loss has been learned yet; give the callback to a Trainer and call its fit().")
        return self._teacher

    @property
    def loss(self) -> LearnedLoss:
        """The loss as it is now: a copy, for any other loop."""
        return self.teacher.loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"a loss is learned through one optimizer, and the module has {len(trainer.optimizers)}; let "
                "configure_optimizers give one, with parameter groups."
            )
        if not callable(getattr(pl_module, self._attribute, None)):
            raise UserError(
                f"the module has no loss in its attribute {self._attribute!r}; let training_step call "
                f"self.{self._attribute}(logits, labels), or give LearnLoss criterion=, the attribute's name."
            )
        options = {"max_norm": _max_norm(trainer), "warm_steps": self._warm_steps} | self._options
        if options["warm_steps"] is None:
            options["warm_steps"] = _warm_steps(trainer)
        self._teacher = LossTeacher(pl_module, trainer.optimizers[0], self._validation, **options)
        if self._state is not None:
            self._teacher.load_state_dict(self._state)
            self._state = None
        self._own_criterion = getattr(pl_module, self._attribute)
        setattr(pl_module, self._attribute, self._teacher.criterion)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del trainer, outputs, batch, batch_idx
        pl_module.log_dict({f"learned_loss/{name}": value for name, value in self.teacher.metrics.items()})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del exception
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del trainer, stage
        if self._own_criterion is not None:
            self.teacher.close()
            setattr(pl_module, self._attribute, self._own_criterion)
            self._own_criterion = None

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state or {}) if self._teacher is None else self._teacher.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _max_norm(trainer: Trainer) -> float | None:
    clips_norm = trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm") != "value"
    return float(trainer.gradient_clip_val) if clips_norm else None  # pyright: ignore[reportArgumentType]


def _warm_steps(trainer: Trainer) -> int:
    num_steps = trainer.estimated_stepping_batches
    if num_steps == math.inf or num_steps < 0:
        raise UserError("nobody knows how long the trainer trains; set its max_steps, or warm_steps of LearnLoss.")
    return round(WARM_SHARE * num_steps)
