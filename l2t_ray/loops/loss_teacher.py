"""Learns a loss inside a training loop that belongs to somebody else.

The loop calls a criterion and an optimizer, as ever. At every n-th of the optimizer's steps the hypergradient through
that one step is taken, exactly (`one_step.py`), and a teacher moves the loss's weights along it.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.assembly.fit_settings import GivenLoss, first_loss, settings_of
from l2t_ray.bilevel.refusals import is_compiled
from l2t_ray.core.loss.brought import report_of
from l2t_ray.core.loss.criterion import criterion
from l2t_ray.core.loss.family import RowFamily
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.student import cross_entropy
from l2t_ray.core.teacher import LocalTeacher
from l2t_ray.interfaces import LossParams, Metrics, UserError
from l2t_ray.loops.clean_set import Answer, CleanSet
from l2t_ray.loops.model_settings import ModelSettings
from l2t_ray.loops.noise_watch import NoiseWatch
from l2t_ray.loops.one_step import OneStep
from l2t_ray.methods.learned_loss import LearnedLossSettings, ShiftedByNoise
from l2t_ray.methods.parts import LossFacts
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.dry_round import with_remedies
from l2t_ray.training.user_module import answer as answer_of

_LOG = logging.getLogger(__name__)
WARM_SHARE = 0.15
"""Of a loop's steps, where it is known how many there are: the recommended method's."""
_OF_A_CRITERION = ("weight", "ignore_index", "label_smoothing", "reduction")
_SOURCE = "the arguments of LossTeacher"


class LossTeacher:
    """Teaches the loss of a loop that trains a classifier.

    >>> teacher = LossTeacher(model, optimizer, (clean_images, clean_labels))
    >>> for images, labels in batches:
    ...     optimizer.zero_grad()
    ...     teacher.criterion(model(images), labels).backward()
    ...     optimizer.step()
    >>> teacher.loss.save("loss.safetensors")

    It hears of the optimizer's steps by hooks; nothing else is to be called. Gradients may be accumulated over several
    minibatches, the loss multiplied and added to others, and everything cast by bf16 autocast.

    Args:
        model: gives logits `[n, c]`; it is asked about `validation` too.
        optimizer: `torch.optim.SGD`, `Adam` or `AdamW` of its weights, in any groups, under any schedule.
        validation: clean examples, `(inputs, labels)`, a `Dataset` or a `DataLoader`, as `fit` takes them.
        every: steps of the optimizer from one change of the loss to the next.
        warm_steps: steps under plain cross-entropy, after which a loss with a channel of label noise begins at an
            estimate of it. 0: the loss is learned from the first step on.
        loss, teacher: as in `fit`. The default is the recommended loss; its memory is left out where `num_examples`
            is not given.
        num_examples: of the training set, for a loss with a memory; the criterion is then called with `index=`.
        max_norm: that the loop gives to `clip_grad_norm_`; None: it does not clip by norm.
        val_batch_size: None: as a loader has it, or else 100.
        answer: `(model, inputs) -> logits`; None: the model itself, several inputs by name.
        seed: of the clean minibatches, and of a teacher that is an LSTM.
        options: of the criterion, as those of `LearnedLoss`: `weight`, `ignore_index`, `label_smoothing`, `reduction`.

    Raises:
        UserError: if something cannot be trained so; before anything is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        validation: Any,
        *,
        every: int = 5,
        warm_steps: int = 0,
        loss: GivenLoss = None,
        teacher: str | Mapping[str, Any] = "adam",
        num_examples: int | None = None,
        max_norm: float | None = None,
        val_batch_size: int | None = None,
        answer: Answer | None = None,
        seed: int = 0,
        **options: Any,
    ):
        if every < 1 or warm_steps < 0:
            raise UserError(f"every must be 1 or more and warm_steps 0 or more, got {every} and {warm_steps}.")
        if unknown := [name for name in options if name not in _OF_A_CRITERION]:
            raise UserError(
                f"{unknown[0]} is no option of LossTeacher; beside every, warm_steps, loss, teacher, num_examples, "
                f"max_norm, val_batch_size, answer and seed there are {', '.join(_OF_A_CRITERION)}."
            )
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(
                f"a loss is taught in one process, and there are {dist.get_world_size()}; train on one device, or take "
                "a job, which divides the work over Ray's workers."
            )
        if any(map(is_compiled, model.modules())):
            raise UserError(
                "model is compiled, and compiled code cannot be differentiated twice; give the module that "
                "torch.compile was given."
            )
        self._every, self._warm_steps = every, warm_steps
        self._one_step = OneStep(model, optimizer, max_norm)
        self._clean = CleanSet(model, validation, answer or answer_of, batch_size=val_batch_size, seed=seed)
        device = self._one_step.parameters[0].device
        remedies = with_remedies(lambda: self._one_step.try_on(self._clean.few()), device)
        self._settings = ModelSettings(model, remedies)
        family, self._teacher, has_channel = _begun(self._num_classes(), loss, teacher, num_examples, seed)
        try:
            self._loss = LearnedLoss(family, num_examples=num_examples, **options).to(device)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._offset = torch.zeros_like(family.phi)
        self._shifted = family if has_channel and isinstance(family, ShiftedByNoise) else None
        self._noise = NoiseWatch(warm_steps) if warm_steps and self._shifted is not None else None
        self._step = self._taught = 0
        self._autocast: torch.dtype | None = None
        self.criterion = Criterion(self._loss_of)
        self.metrics: Metrics = {}
        """Of the latest change of the loss: `validation_error`, `hypergradient_norm`, `phi_step_norm`, what the teacher
        says of the hypergradients, and what the loss says of itself."""
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._prepare()

    @property
    def loss(self) -> LearnedLoss:
        """The loss as it is now: a copy, which is not taught any more."""
        return self._loss.with_options().to(self._loss.phi.device)

    @property
    def num_changes(self) -> int:
        """How often the loss was changed."""
        return self._taught

    def close(self) -> None:
        """Lets go of the optimizer and the model. The criterion goes on as the loss is now."""
        for handle in self._handles:
            handle.remove()
        self._settings.leave()
        self._handles = []
        self._one_step.begin()

    def state_dict(self) -> dict[str, Any]:
        """All that a loop needs beside its own checkpoint to go on bit for bit: tensors, numbers, lists."""
        return {
            "teacher": self._teacher.state_dict(),
            "offset": self._offset,
            "memory": self._loss.memory,
            "noise": None if self._noise is None else self._noise.state_dict(),
            "step": self._step,
            "taught": self._taught,
            "metrics": dict(self.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there. To be called between two steps.

        Raises:
            UserError: if it is of another loss.
        """
        if state["offset"].shape != self._offset.shape:
            raise UserError(
                f"the checkpoint's loss has {len(state['offset'])} weights, and this one {len(self._offset)}; give the "
                "loss that was learned there."
            )
        self._teacher.load_state_dict(state["teacher"])
        if self._noise is not None and state["noise"] is not None:
            self._noise.load_state_dict(state["noise"])
        self._offset, self._step, self._taught = state["offset"].cpu(), state["step"], state["taught"]
        self.metrics = dict(state["metrics"])
        if state["memory"] is not None:
            self._loss.memory = state["memory"].to(self._loss.phi.device)
        self._use(self._teacher.read())
        self._prepare()

    # -- what the loop calls

    def _loss_of(self, logits: Tensor, targets: Tensor, is_training: bool, more: Mapping[str, Any]) -> Tensor:
        self._loss.train(is_training)
        if not (is_training and torch.is_grad_enabled() and logits.requires_grad and self._handles):
            return self._loss(logits, targets, **more)
        kind = logits.device.type
        self._autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if torch.float16 in (self._autocast, logits.dtype):
            raise UserError(
                "the loop trains in float16, whose scaled gradients a hypergradient is not taken through; train in "
                "bf16, or in float32."
            )
        value = self._loss(logits, targets, **more)  # a memory is brought up to date, in warm steps too
        if self._noise is not None:
            self._see(self._noise, logits, targets)
        if self._step < self._warm_steps:
            return self._warm_loss(logits, targets, more)
        if self._is_due:
            self._loss.eval()  # the memory is as it is now
            self._one_step.watch(value, logits, partial(self._at, targets=targets, more=more), self._loss.phi)
        return value

    def _at(self, logits: Tensor, phi: Float[Tensor, " m"], *, targets: Tensor, more: Mapping[str, Any]) -> Tensor:
        return torch.func.functional_call(self._loss, {"phi": phi}, (logits, targets), dict(more))

    def _warm_loss(self, logits: Tensor, targets: Tensor, more: Mapping[str, Any]) -> Tensor:
        return criterion(
            lambda rows, labels, memory: cross_entropy(rows, labels),
            logits,
            targets,
            self._loss.options,
            weight=self._loss.weight,
            sample_weight=more.get("sample_weight"),
        )

    def _see(self, noise: NoiseWatch, logits: Tensor, targets: Tensor) -> None:
        if logits.ndim != 2 or targets.ndim != 1:
            raise UserError(
                "the label noise is estimated from one class number an example, and the criterion was given targets "
                f"of shape {list(targets.shape)}; set warm_steps=0."
            )
        counts = targets != self._loss.ignore_index
        noise.see(self._step, logits[counts], targets[counts])

    # -- the optimizer's steps

    @property
    def _is_due(self) -> bool:
        return self._step >= self._warm_steps and (self._step + 1) % self._every == 0

    def _prepare(self) -> None:
        """For the next step: what the model needs if it is to be differentiated twice."""
        self._settings.enter() if self._is_due else self._settings.leave()

    def _before_step(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_due:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._teach()
            return None

        def watched() -> Any:
            result = closure()
            self._teach()
            return result

        return args[:1], {"closure": watched}

    def _after_step(self, *_: object) -> None:
        if self._is_due:
            self._one_step.check_taken()
            self._one_step.begin()
        self._step += 1
        if self._noise is not None and self._noise.is_due(self._step):
            self._estimate(self._noise)
        self._prepare()

    def _teach(self) -> None:
        params = self._teacher.read()
        error, hypergradient = self._one_step.hypergradient(self._clean, self._taught, self._autocast)
        proposed = self._teacher.propose(params.version, hypergradient, error)
        self._teacher.learn(params.version)
        self._taught += 1
        self._use(proposed)
        self.metrics = {
            "validation_error": error,
            "hypergradient_norm": torch.linalg.vector_norm(hypergradient).item(),
            "phi_step_norm": torch.linalg.vector_norm(proposed.phi - params.phi).item(),
            **proposed.observed,
            **report_of(self._loss.family, self._loss.phi),
        }

    def _use(self, params: LossParams) -> None:
        self._loss.phi.copy_(params.phi + self._offset)

    def _estimate(self, noise: NoiseWatch) -> None:
        assert self._shifted is not None
        labels = self._clean.labels.to(self._loss.phi.device)
        estimate = noise.estimate(self._step, self._clean.answers(), labels)
        if estimate is None:
            _LOG.warning(
                "after %d steps the model's answers tell too little to estimate the label noise; it is put off. "
                "A longer warm-up (warm_steps=) or more clean examples help.",
                self._step,
            )
            return
        _LOG.info("label noise: %s", estimate)
        params = self._teacher.read()
        self._offset = self._shifted.shift_to(estimate.channel.to(params.phi), params.phi)
        self._use(params)

    # -- before the first step

    @torch.no_grad()
    def _num_classes(self) -> int:
        num_classes, largest = self._clean.few().shape[1], int(self._clean.labels.max())
        if largest >= num_classes:
            raise UserError(
                f"validation has the label {largest}, and model gives {num_classes} outputs, for classes 0 to "
                f"{num_classes - 1}; give model {largest + 1} outputs, or number the classes from 0."
            )
        return num_classes


class Criterion(nn.Module):
    """What a loop calls in the place of its loss, as a `LearnedLoss`. It has neither parameters nor buffers, so that it
    leaves no trace in the checkpoints of a module that it is an attribute of."""

    def __init__(self, loss_of: Any):
        super().__init__()
        self._loss_of = loss_of

    def forward(self, logits: Tensor, targets: Tensor, **more: Any) -> Tensor:
        return self._loss_of(logits, targets, self.training, more)


def _begun(
    num_classes: int, loss: GivenLoss, teacher: str | Mapping[str, Any], num_examples: int | None, seed: int
) -> tuple[Any, LocalTeacher, bool]:
    """The loss at its beginning, what teaches it, and whether the label noise can be estimated for it."""
    name = loss.get("name", "pairs") if isinstance(loss, Mapping) else loss
    method: dict[str, Any] = {"name": "l2t_dln"}  # has any family of losses
    if name in (None, "pairs"):
        method = {"name": "recommended"} | ({} if num_examples else {"loss": {"memory": None}})
    config = settings_of({}, method, seed=seed, warm_share=None, teacher=teacher, loss=loss, source=_SOURCE)
    facts = LossFacts(Classification(), num_classes, seed)
    family = first_loss(loss, config, facts, num_classes)
    assert isinstance(config.method, LearnedLossSettings) and family is not None
    if not isinstance(family, RowFamily):
        raise UserError(f"loss is a {type(family).__name__}, no loss of class decisions; take pairs or adjusted.")
    if family.reads_memory and num_examples is None:
        raise UserError(
            "loss has a memory of each training example; give num_examples= and call the criterion with index=, or "
            "leave the memory out (memory=None)."
        )
    return family, config.method.new_teacher(replace(facts, given=family)), config.method.loss.has_channel
