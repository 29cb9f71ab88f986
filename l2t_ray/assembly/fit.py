"""Train your own model on your own data with a learned loss, in this process: no configuration file, no Ray.

Settings, phases and minibatches are those of a job (`assembly/run.py`): the same settings give the same training, bit
for bit.
"""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from l2t_ray.assembly.run import run_of
from l2t_ray.assembly.students import build_schedule
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.assembly.tensor_source import TensorSource
from l2t_ray.bilevel.draws import ONE_AT_A_TIME
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.refusals import is_compiled
from l2t_ray.core.loss.brought import checked_family
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.core.student import Trainee
from l2t_ray.core.suspects import Suspects
from l2t_ray.data.tensor_examples import TensorSets
from l2t_ray.interfaces import Batch, DivergenceError, Task, Terms, UserError
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.loss_network import LossNetworkConfig
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.parts import LossFacts, Parts
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.settings.tree import Settings
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.arguments import check_arguments, usable_device
from l2t_ray.training.checkpoint import Checkpoint
from l2t_ray.training.dry_round import dry_round, first_outputs, with_remedies
from l2t_ray.training.explain import Words, task_tried
from l2t_ray.training.loop import Run, StepSizes
from l2t_ray.training.remedies import EAGER, applied
from l2t_ray.training.user_module import check_parameters, copied, initialise_lazy, uncompiled

if TYPE_CHECKING:
    import pandas

_LOG = logging.getLogger(__name__)
_LARGE_INPUT = 20.0
GivenLoss = LossFamily | DynamicLossNetwork | Mapping[str, Any] | str | None
"""A loss as it begins, or its settings; None: as the method has it."""


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back: the trained model in evaluation mode, the loss it was trained with at the end (None: the
    method learns none), and a row a round.

    `noise` is the newest estimate of the label noise, with its standard errors; None where there was none.
    `suspected` is what `suspects` makes a table of; None: the method cannot say.
    """

    model: nn.Module
    loss: LearnedLoss | None
    rows: list[dict[str, Any]]
    noise: NoiseEstimate | None
    suspected: Suspects | None = None

    def suspects(self) -> "pandas.DataFrame":
        """The training labels, the most suspicious first, by what the model said of each example while it trained.

        Returns:
            A row for each training example, with the columns `index` (its place in `train`), `given_label`,
            `suggested_label` (the likeliest class; the given one where no other is likelier) and `score`:
            the share of the model's answers that are not for the label, between 0 and 1. Higher is worse, other than
            in cleanlab, and it ranks labels: it is not the probability that one is wrong. NaN, at the end: an example
            that was never drawn.

        Raises:
            UserError: if the method remembers nothing of its examples.
        """
        found = self.suspected
        if found is None:
            raise UserError(
                "suspects() needs a method that remembers what the model said of each example, and this one does not; "
                'take method="recommended", or a loss network with memory.'
            )
        from pandas import DataFrame  # it takes a while to import, and nothing else here needs it

        return DataFrame(
            {
                "index": found.places.numpy(),
                "given_label": found.given.numpy(),
                "suggested_label": found.suggested.numpy(),
                "score": found.scores.numpy(),
            }
        )


def fit(
    model: nn.Module,
    *,
    train: tuple[Any, Any],
    validation: tuple[Any, Any],
    test: tuple[Any, Any] | None = None,
    task: Task | None = None,
    method: MethodSettings | Mapping[str, Any] | str | None = None,
    num_rounds: int = 300,
    num_steps: int = 15,
    batch_size: int = 25,
    val_batch_size: int = 100,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    weight_decay: float = 5e-4,
    warm_share: float | None = None,
    teacher: str | None = None,
    loss: GivenLoss = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    try_first: bool = True,
    optimizer: str | Mapping[str, Any] = "sgd",
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Fit:
    """Trains a copy of `model` on noisy examples under a loss that is learned from clean ones.

    One round is tried first, on a copy of its own (`dry_round`), so that what cannot be trained is refused at once.
    Calls from several threads wait for each other: what is drawn in a model comes from streams of the process.

    Args:
        model: gives logits `[n, c]` for inputs `[n, ...]`, of any floating-point type; left as it is. It may have more
            outputs than the labels have classes. Lazy modules get their shapes from the validation inputs.
        train: inputs and labels to train on, tensors or NumPy arrays; labels may be wrong, and of any integer type.
            Several inputs are given by the names of the model's arguments, `{"tokens": ..., "mask": ...}`.
        validation: inputs and labels to validate on; small and clean. The recommended method validates on one fold of
            them at a time and trains on the others; it never trains on them with
            `method={"name": "recommended", "clean_images": "judge"}`.
        test: inputs and labels that the rows' `test_accuracy` is of; None: it is of the validation set, and too good
            where that is trained on.
        task: what outputs and targets mean, where they are not logits and class numbers: `tasks.segmentation` has one
            for masks, docs/extending.md shows one's own. The targets are then what the task takes.
        method: what a configuration's section `method` may hold, or a method's settings; None: the recommended one.
        num_rounds: changes of the loss; the model takes `num_rounds * num_steps` steps, with cosine decay.
        learning_rate: of the first step; None: 0.1 with SGD, 0.001 with Adam.
        warm_share: share of the rounds under plain cross-entropy, after which the label noise is estimated and the
            loss goes on from there (`core/noise_estimate.py`). Short enough that wrong labels are not memorised in it.
            0: the loss is learned from the first round on. 1: it never is, so that this is cross-entropy. None: as
            the method has it.
        teacher: what changes the loss: `adam` on its weights, or the `lstm`; None: as the method has it.
        loss: the learned loss, at its beginning: a loss network, or a family of your own (docs/extending.md); or what
            a configuration's section `method.loss` may hold. None: as the method has it. The noise is estimated for a
            loss with a channel alone.
        device: where it is trained. The sets are kept there if they fit; the trained model is where `model` is.
        try_first: try a round first, and hold its derivatives against finite differences. False: what cannot be
            trained is found where it fails, or not at all.
        optimizer: `sgd`, `adam` or `adamw`; or that as `name` with what else a configuration's section `training` has
            for it, as in `{"name": "adamw", "betas": (0.9, 0.99), "clip": 1.0}`.
        on_row: callback, called with the metrics of each round.

    Raises:
        UserError: before anything is trained, if an argument is none (`arguments`), the data does not fit together
            (`TensorSets`), or the model cannot be copied, evaluated, or differentiated twice.
        DivergenceError: if the training error or a gradient is not finite.
    """
    check_arguments(locals())
    config = _settings(
        {
            "num_rounds": int(num_rounds),
            "checkpoint_every": int(num_rounds),
            "num_steps": int(num_steps),
            "batch_size": int(batch_size),
            "val_batch_size": int(val_batch_size),
            "momentum": float(momentum),
            "weight_decay": float(weight_decay),
        }
        | _steps_by(optimizer, None if learning_rate is None else float(learning_rate)),
        method,
        seed=int(seed),
        warm_share=warm_share,
        teacher=teacher,
        loss=loss,
    )
    check_parameters(model)
    place = usable_device(device)
    words = Words(batch_size=f"batch_size={batch_size}", val_batch_size=f"val_batch_size={val_batch_size}")
    # Somebody may call this inside torch.no_grad() or torch.inference_mode().
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad():
        compiled = any(map(is_compiled, model.modules()))
        student = uncompiled(copied(model))
        home = next(student.parameters()).device
        student.to(place)
        sets = TensorSets(
            *(train, validation, test),
            batch_size=config.training.batch_size,
            val_batch_size=config.training.val_batch_size,
            device=place,
            num_classes=None if task is None else 1,
        )
        shared = {"seed": config.seed, "device": place, "task": task}
        batches = TensorSource(sets, config.training, num_classes=sets.num_classes, **shared).dry_round()
        initialise_lazy(student, batches.val.inputs, config.seed)
        outputs = first_outputs(student, batches.val.inputs, words, are_logits=task is None)
        if test is not None:
            extreme, _ = sets.test.batch(np.array(sets.test.extreme_rows), (), place)
            first_outputs(student, extreme, words._replace(validation="test"), are_logits=task is None)
        notes = [EAGER.note] if compiled else []
        if task is None:
            num_classes = outputs.shape[1]
            sets.check_outputs(num_classes)
            notes += _notes(outputs, sets.num_classes)
        else:
            num_classes = _classes_of_rows(task, outputs, batches.val)
        source = TensorSource(sets, config.training, num_classes=num_classes, **shared)

        def sample() -> Sequence[Terms]:
            return _parts(config, FlatModule(copied(student)), source, task).term_sample()

        facts = LossFacts(task or Classification(), num_classes, config.seed, sample)
        first_loss = _first_loss(loss, config, facts, sets.num_classes)

        def try_a_round() -> None:
            run, _ = _built(config, FlatModule(copied(student)), source, task, first_loss, sets)
            dry_round(run.arms[0].method, run.student, run.task, run.group, batches, words)
            copied(run.student.module)

        remedies = with_remedies(try_a_round, place) if try_first else []
        for note in (*notes, *(remedy.note for remedy in remedies)):
            _LOG.warning("model %s.", note)
        if test is None and source.teaches_validation:
            _LOG.warning("test_accuracy is of the validation set, which is trained on as well: too good; give test=.")
        if config.method.clean_images == "trusted" and not source.teaches_validation:
            _LOG.warning(
                "the %d validation examples are only validated on: they do not fill val_batch_size=%d twice; lower it "
                "to train on folds of them as well.",
                len(sets.validation),
                config.training.val_batch_size,
            )
        run, estimates = _built(config, FlatModule(student), source, task, first_loss, sets)
        with warnings.catch_warnings(), applied(remedies):
            warnings.simplefilter("ignore")  # it is raised, below
            end = run.train(start=None, store=None, on_row=on_row)
        if end.diverged:
            raise DivergenceError(*end.diverged.values())
        run.student.load(end.state.student.theta, end.state.student.buffers)
        return Fit(
            copied(student).to(home).eval(),
            _last_loss(first_loss, end),
            end.rows,
            estimates[-1] if estimates else None,
            suspects_of(config.method, end, source),
        )


# What is no such argument is for the table of rules to say, not for a type checker at run time.
setattr(fit, "__no_type_check__", True)  # noqa: B010


def _steps_by(optimizer: Mapping[str, Any] | str, learning_rate: float | None) -> dict[str, Any]:
    """What the section `training` says of the optimizer's steps."""
    given = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    name = given.pop("name")
    usual = 0.1 if name == "sgd" else 1e-3
    return given | {"optimizer": name, "learning_rate": usual if learning_rate is None else learning_rate}


def _settings(
    training: dict[str, Any],
    method: MethodSettings | Mapping[str, Any] | str | None,
    *,
    seed: int,
    warm_share: float | None,
    teacher: str | None,
    loss: GivenLoss,
) -> ExperimentConfig:
    """What a configuration with these settings would be.

    Raises:
        UserError: if there is no such method, or it has no such settings.
    """
    tree = {"seed": seed, "training": training | {"decay": "cosine"}, "controls": [], "ray": {"enabled": False}}
    if method is not None:
        tree["method"] = dict(method) if isinstance(method, Mapping) else method
    config = configuration.validate(tree, source="the arguments of fit")
    method, own = config.method, dict[str, Any]()
    for name, value in (("warm_share", warm_share), ("teacher", teacher), ("loss", loss)):
        if value is not None and name not in type(method).model_fields:
            raise UserError(f"{name} is for a method that learns its loss, and method is {method.name!r}.")
    if warm_share == 1:  # never learned
        return configuration.validate(tree | {"method": "cross_entropy"}, source="the arguments of fit")
    if warm_share is not None:
        own["warm_share"] = float(warm_share)
    if teacher is not None:
        own["teacher"] = teacher
    if isinstance(loss, str | Mapping):
        own["loss"] = loss
    elif isinstance(loss, DynamicLossNetwork) and isinstance(method, LearnedLossSettings):
        # Where it begins is its own weights' to say.
        set_already = method.loss.model_dump() if isinstance(method.loss, LossNetworkConfig) else {}
        own["loss"] = set_already | LossNetworkConfig.of(loss.spec) | {"init": "cross_entropy"}
    if own:
        changed = configuration.validated(type(method), Settings(method.model_dump() | own, "in the arguments of fit"))
        config = config.model_copy(update={"method": changed})
    if loss is None or isinstance(loss, str | Mapping | DynamicLossNetwork):
        return config
    brought = config.method.model_copy(update={"loss": LossSettings(name=type(loss).__name__)})
    return config.model_copy(update={"method": brought})


def _first_loss(
    given: GivenLoss,
    config: ExperimentConfig,
    facts: LossFacts,
    num_labels: int,
) -> LossFamily | None:
    """The loss to begin with; one that is given is copied. None: the method learns none.

    Raises:
        UserError: if it is for another number of classes.
    """
    if isinstance(given, DynamicLossNetwork) and given.spec.num_classes not in (None, facts.num_classes):
        raise UserError(
            f"loss is for {given.spec.num_classes} classes, and the labels have {num_labels}, model "
            f"{facts.num_classes} outputs; make one for {facts.num_classes}, or leave it out."
        )
    method = config.method
    if not isinstance(method, LearnedLossSettings):
        return None
    if given is None or isinstance(given, str | Mapping):
        return method.first_loss(facts)
    if isinstance(given, DynamicLossNetwork):
        return PairLoss(copied(given, "loss").float(), facts.task)  # teachers move phi in single precision
    return checked_family(given, "loss", facts.task)


def _last_loss(family: LossFamily | None, end: Checkpoint) -> LearnedLoss | None:
    if family is None:
        return None
    if not end.snapshots:
        return LearnedLoss(family)
    (snapshots,) = end.snapshots.values()
    return LearnedLoss(family, snapshots[max(snapshots)])


def _built(
    config: ExperimentConfig,
    student: FlatModule,
    source: TensorSource,
    task: Task | None,
    loss: LossFamily | None,
    sets: TensorSets,
) -> tuple[Run, list[NoiseEstimate]]:
    """Everything that is trained, at its beginning; the list is filled with what is found of the noise."""
    estimates: list[NoiseEstimate] = []
    parts = replace(_parts(config, student, source, task), loss=loss, on_estimate=estimates.append)
    run = replace(
        run_of(config, parts, build_teacher),
        tests_on_validation=sets.test is sets.validation,
        step_sizes=StepSizes("learning_rate", None),
        other_advice=_about_inputs(sets.train.largest),
    )
    return run, estimates


def _parts(config: ExperimentConfig, student: FlatModule, source: TensorSource, task: Task | None) -> Parts:
    trainee = Trainee(
        student, task or Classification(), build_schedule(config.training), SingleProcess(), source.device
    )
    return Parts(trainee, source, config.training.num_rounds, config.seed)


def _classes_of_rows(task: Task, outputs: Any, batch: Batch) -> int:
    """How many classes a task's rows decide between; 1: it has none."""
    with torch.no_grad(), task_tried(task):
        rows = task.terms(outputs, batch).rows
    return 1 if rows is None else rows.logits.shape[1]


def _notes(outputs: Tensor, num_labels: int) -> list[str]:
    """What is odd about a model's first outputs, but may be meant."""
    notes = []
    if outputs.shape[1] > num_labels:
        notes.append(
            f"gives {outputs.shape[1]} outputs for {num_labels} classes; the others are outputs without examples"
        )
    if bool((outputs >= 0).all()) and torch.allclose(outputs.sum(dim=1), outputs.new_ones(()), atol=1e-3):
        notes.append("seems to give probabilities where logits are expected; leave its softmax out")
    return notes


def _about_inputs(largest: float) -> str:
    return "" if largest <= _LARGE_INPUT else f", or scale the inputs, which reach {largest:g}"
