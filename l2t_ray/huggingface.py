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
from torch.utils.data import DataLoader

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

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *others: Any,
        clean_dataset: Any,
        learning: dict[str, Any] | None = None,
        **more: Any,
    ):
        super().__init__(model, args, *others, **more)
        _check(self)
        self._clean_dataset, self._learning = clean_dataset, dict(learning or {})
        self._teacher: LossTeacher | None = None
        self.model_accepts_loss_kwargs = False  # the loss is a mean over each minibatch, whatever the model's own is

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

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The learning begins here: in every version it is known by now how many steps there will be."""
        scheduler = super().create_scheduler(num_training_steps, *args, **kwargs)
        if self._teacher is not None:
            self._teacher.close()
        warm_steps = math.ceil(WARM_SHARE * num_training_steps)
        options = {"warm_steps": warm_steps, "max_norm": self.args.max_grad_norm or None} | self._learning
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # without Accelerate's wrapper
        model: Any = self.model
        self._teacher = LossTeacher(model, optimizer, self._clean_loader(), answer=_logits, **options)
        return scheduler

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        """In training the learned loss; in evaluation the model's own."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        if "labels" not in inputs:
            raise UserError(f"train_dataset has no labels, but {', '.join(inputs)}; give each item its 'labels'.")
        outputs = model(**{name: values for name, values in inputs.items() if name != "labels"})
        loss = self.teacher.criterion(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss

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
        """As the Trainer prepares items to be evaluated: without columns that the model does not take."""
        prepared = self.get_eval_dataloader(self._clean_dataset)
        dataset: Any = prepared.dataset
        size = min(self.args.per_device_eval_batch_size, len(dataset))
        return DataLoader(dataset, batch_size=size, collate_fn=prepared.collate_fn)


def _check(trainer: Trainer) -> None:
    """
    Raises:
        UserError: if the arguments ask for what a learned loss cannot go with.
    """
    args = trainer.args
    if trainer.compute_loss_func is not None:
        raise UserError("compute_loss_func is another loss than the one that is learned; leave it out.")
    if args.label_smoothing_factor:
        raise UserError(
            f"label_smoothing_factor={args.label_smoothing_factor} is for the Trainer's own loss; give "
            "learning={'label_smoothing': ...} in its place."
        )
    if args.fp16:
        raise UserError("fp16=True scales gradients, through which no hypergradient is taken; set bf16=True instead.")
    if args.n_gpu > 1:
        raise UserError(f"a loss is taught on one device, and {args.n_gpu} are in use; let the process see one.")


def _logits(model: Any, inputs: Any) -> Tensor:
    return model(**inputs)["logits"]
