"""Train your own model on your own data with a learned loss, in this process: no configuration file, no Ray.

Settings, phases and minibatches are those of a job (`assembly/run.py`): the same settings give the same training, bit
for bit.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2t_ray.assembly.callbacks import Callback
from l2t_ray.assembly.fit_checkpoints import checkpoints_in
from l2t_ray.assembly.fit_parts import FitParts
from l2t_ray.assembly.fit_result import Fit
from l2t_ray.assembly.fit_rounds import Rounds, screen_of
from l2t_ray.assembly.fit_settings import GivenLoss, settings_of, steps_by
from l2t_ray.bilevel.draws import ONE_AT_A_TIME
from l2t_ray.data.item_examples import batch_size_of
from l2t_ray.data.tensor_examples import TensorSets
from l2t_ray.interfaces import Task
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.training.arguments import autocast_of, check_arguments, usable_device
from l2t_ray.training.remedies import applied
from l2t_ray.training.user_module import check_parameters

_LOG = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    *,
    train: Any,
    validation: Any,
    test: Any = None,
    task: Task | None = None,
    method: MethodSettings | Mapping[str, Any] | str | None = None,
    num_rounds: int = 300,
    num_steps: int = 15,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    weight_decay: float = 5e-4,
    warm_share: float | None = None,
    teacher: str | None = None,
    loss: GivenLoss = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    try_first: bool = True,
    optimizer: str | Mapping[str, Any] = "sgd",
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
    callbacks: Sequence[Callback] = (),
    eval_every: int = 25,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    precision: str | None = None,
) -> Fit:
    """Trains a copy of `model` on noisy examples under a loss that is learned from clean ones.

    One round is tried first, on a copy of its own (`dry_round`), so that what cannot be trained is refused at once.
    Calls from several threads wait for each other: what is drawn in a model comes from streams of the process.

    Args:
        model: gives logits `[n, c]` for inputs `[n, ...]`, of any floating-point type; left as it is. It may have more
            outputs than the labels have classes. Lazy modules get their shapes from the validation inputs.
        train: what to train on; labels may be wrong, and of any integer type. It is `(inputs, labels)`, tensors, NumPy
            arrays or tables; several inputs are given by the names of the model's arguments, `{"tokens": ...,
            "mask": ...}`. Or a `Dataset` whose items are such pairs, or a `DataLoader` with its collate function:
            items are read once at first, and then whenever they are drawn, in this process. Minibatches are drawn
            here, each example as often as any other.
        validation: likewise, to validate on; small and clean. The recommended method validates on one fold of
            them at a time and trains on the others; it never trains on them with
            `method={"name": "recommended", "clean_images": "validate"}`.
        test: likewise; what the rows' `test_accuracy` is of; None: it is of the validation set, and too good
            where that is trained on.
        task: what outputs and targets mean, where they are not logits and class numbers: `tasks.segmentation` has one
            for masks, docs/extending.md shows one's own. The targets are then what the task takes.
        method: what a configuration's section `method` may hold, or a method's settings; None: the recommended one.
        num_rounds: changes of the loss; the model takes `num_rounds * num_steps` steps, with cosine decay.
        batch_size: of the minibatches; None: as the loader has it, or else 25.
        val_batch_size: likewise; None: as the loader has it, or else 100, and no more than half of a loader's examples.
        learning_rate: of the first step; None: 0.1 with SGD, 0.001 with Adam.
        warm_share: share of the rounds under plain cross-entropy, after which the label noise is estimated and the
            loss goes on from there (`core/noise_estimate.py`). Short enough that wrong labels are not memorised in it.
            0: the loss is learned from the first round on. 1: it never is, so that this is cross-entropy. None: as
            the method has it.
        teacher: what changes the loss: `adam` on its weights, or the `lstm`; None: as the method has it.
        loss: the learned loss, at its beginning: a loss network, or a family of your own (docs/extending.md); or what
            a configuration's section `method.loss` may hold. None: as the method has it. The noise is estimated for a
            loss with a channel alone.
        device: where it is trained; None: where `model` is. Tensors are kept there if they fit, and else moved
            minibatch by minibatch, as items are. The trained model is where `model` is.
        try_first: try a round first, and hold its derivatives against finite differences. False: what cannot be
            trained is found where it fails, or not at all.
        optimizer: `sgd`, `adam` or `adamw`; or that as `name` with what else a configuration's section `training` has
            for it, as in `{"name": "adamw", "betas": (0.9, 0.99), "clip": 1.0}`.
        on_row: called with the metrics of each round.
        callbacks: each is called after each round with its number, from 0, and its metrics; one that returns True ends
            the training. `EarlyStopping` is one.
        eval_every: rounds between evaluations of the validation and the test set; the last round always has one.
        progress: show a bar on standard error, where that is a terminal.
        checkpoint: a directory for what has been done, written every `checkpoint_every` rounds and where the training
            ends, by Ctrl-C as well. The same call goes on from there, bit for bit; what another call has computed is
            refused. A model that begins with other weights is another call: seed it, or load the directory's
            `first_weights.pt`.
        precision: `bf16`: the model's operations are computed in bfloat16 where torch holds that to be safe
            (`torch.autocast`), in the second-order products too. Parameters, the loss, and what is carried from step to
            step and back stay in float32. None: as the model has it.

    Returns:
        Model, loss and what was found; after Ctrl-C those of the latest whole round, and `stopped` says so.

    Raises:
        UserError: before anything is trained, if an argument is none (`arguments`), the data does not fit together
            (`TensorSets`), or the model cannot be copied, evaluated, or differentiated twice.
        DivergenceError: if the training error or a gradient is not finite.
        Exception: what a callback, the data or the model raises. It and a divergence have an attribute `partial`, with
            what had been reached, where a round was done.
    """
    check_arguments(locals())
    config = settings_of(
        {
            "num_rounds": int(num_rounds),
            "checkpoint_every": 1,  # of what may be given back; what is written has its own rounds
            "eval_every": int(eval_every),
            "num_steps": int(num_steps),
            "batch_size": int(batch_size or batch_size_of(train) or 25),
            "val_batch_size": int(val_batch_size or batch_size_of(validation, share=0.5) or 100),
            "momentum": float(momentum),
            "weight_decay": float(weight_decay),
        }
        | steps_by(optimizer, None if learning_rate is None else float(learning_rate)),
        method,
        seed=int(seed),
        warm_share=warm_share,
        teacher=teacher,
        loss=loss,
    )
    check_parameters(model)
    place = usable_device(next(model.parameters()).device if device is None else device)
    autocast = autocast_of(precision, model, place, getattr(config.method, "engine", None))
    # Somebody may call this inside torch.no_grad() or torch.inference_mode().
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad():
        sets = TensorSets(
            *(train, validation, test),
            batch_size=config.training.batch_size,
            val_batch_size=config.training.val_batch_size,
            device=place,
            num_classes=None if task is None else 1,
        )
        parts = FitParts.of(model, sets, config, task=task, loss=loss, device=place, autocast=autocast)
        remedies = parts.tried() if try_first else []
        for note in (*parts.notes, *(remedy.note for remedy in remedies)):
            _LOG.warning("model %s.", note)
        run = parts.run()
        _warn_of_validation(parts, has_test=test is not None)
        with (
            checkpoints_in(checkpoint, parts, every=int(checkpoint_every)) as checkpoints,
            warnings.catch_warnings(),
            applied(remedies),
        ):
            warnings.filterwarnings("ignore", ".* diverged in round ")  # it is raised
            return Rounds(parts, run, callbacks, on_row, screen_of(progress), checkpoints).trained()


# What is no such argument is for the table of rules to say, not for a type checker at run time.
setattr(fit, "__no_type_check__", True)  # noqa: B010


def _warn_of_validation(parts: FitParts, *, has_test: bool) -> None:
    if not has_test and parts.source.teaches_validation:
        _LOG.warning("test_accuracy is of the validation set, which is trained on as well: too good; give test=.")
    if parts.config.method.clean_images == "trusted" and not parts.source.teaches_validation:
        _LOG.warning(
            "the %d validation examples are only validated on: they do not fill val_batch_size=%d twice; lower it "
            "to train on folds of them as well.",
            len(parts.sets.validation),
            parts.config.training.val_batch_size,
        )
