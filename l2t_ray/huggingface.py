"""Learn the loss while Hugging Face's Trainer trains: `pip install 'l2t_ray[hf]'`.

>>> trainer = LearnedLossTrainer(model, arguments, train_dataset=noisy, clean_dataset=clean)
>>> trainer.train()
>>> trainer.loss.save("loss.safetensors")
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.extras import Need, need
from l2t_ray.interfaces import UserError
from l2t_ray.loops.loss_teacher import WARM_SHARE, LossTeacher

need(Need("transformers", "l2t_ray.huggingface"), Need("accelerate", "l2t_ray.huggingface"))

from transformers import Trainer, TrainingArguments  # noqa: E402  (what is missing is said before)

LOSS_FILE, STATE_FILE = "loss.safetensors", "loss_teacher.pt"


class LearnedLossTrainer(Trainer):
    """A Trainer of a sequence classifier whose loss is learned from clean examples.

    Optimizer, precision, schedule, accumulation and clipping are the arguments' own. Checkpoints hold
    `loss.safetensors` and what teaches it, and `resume_from_checkpoint` goes on from there. The numbers
    `learned_loss_...` stand among those that the Trainer logs.

    Args:
        args, train_dataset, others: as of `transformers.Trainer`; labels of `train_dataset` may be wrong.
        clean_dataset: items as those of `train_dataset`; its labels should be right.
        learning: options of `LossTeacher`. By itself the first 15 % of all steps are warm ones.

    Raises:
        UserError: when training begins, if the model cannot be trained so.
    """

    # What is handed on stays the Trainer's own to say.
    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *others: Any,
        clean_dataset: Dataset | Any,
        learning: dict[str, Any] | None = None,
        **more: Any,
    ):
        super().__init__(model, args, *others, **more)
        if self.compute_loss_func is not None:
            raise UserError("compute_loss_func is another loss than the one that is learned; leave it out.")
        if self.args.label_smoothing_factor:
            raise UserError(
                "label_smoothing_factor is for the Trainer's own loss; give learning={'label_smoothing': ...}."
            )
        self._clean_dataset, self._learning = clean_dataset, dict(learning or {})
        self._teacher: LossTeacher | None = None
        self.loss_is_scaled_for_ga = False  # a mean over each minibatch

    @property
    def teacher(self) -> LossTeacher:
        """
        Raises:
            UserError: if nothing has been trained yet.
        """
        if self._teacher is None:
            raise UserError("no loss has been learned yet; call train().")
        return self._teacher

    @property
    def loss(self) -> LearnedLoss:
        """The loss as it is now: a copy, for any other loop."""
        return self.teacher.loss

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        super().create_optimizer_and_scheduler(num_training_steps)
        if self.args.n_gpu > 1:
            raise UserError(f"a loss is taught on one device, and {self.args.n_gpu} are in use; show one of them.")
        if self._teacher is not None:
            self._teacher.close()
        max_norm = self.args.max_grad_norm or None
        options = {"warm_steps": math.ceil(WARM_SHARE * num_training_steps), "max_norm": max_norm} | self._learning
        optimizer: Any = self.optimizer
        self._teacher = LossTeacher(self.model, optimizer, self._clean_loader(), answer=_logits, **options)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        if self._teacher is None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        others = {name: values for name, values in inputs.items() if name != "labels"}
        outputs = model(**others)
        self._teacher.criterion.train(model.training)
        loss = self._teacher.criterion(outputs["logits"], inputs["labels"])
        return (loss, {"loss": loss, **outputs}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        metrics = {} if self._teacher is None else self._teacher.metrics
        super().log(logs | {f"learned_loss_{name}": value for name, value in metrics.items()}, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        directory = Path(output_dir or self.args.output_dir or ".")
        if self._teacher is not None and self.args.should_save:
            if self._teacher.loss.is_kept:
                self._teacher.loss.save(directory / LOSS_FILE)
            torch.save(self._teacher.state_dict(), directory / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / STATE_FILE
        if not file.is_file():
            raise UserError(f"{checkpoint} has no {STATE_FILE}: no loss was learned there; go on from another one.")
        self.teacher.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _clean_loader(self) -> DataLoader:
        size = min(self.args.per_device_eval_batch_size, len(self._clean_dataset))
        return DataLoader(self._clean_dataset, batch_size=size, collate_fn=self.data_collator)


def _logits(model: Any, inputs: Any) -> Tensor:
    return model(**inputs)["logits"]
