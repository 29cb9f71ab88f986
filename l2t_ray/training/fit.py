"""Train your own model on your own data with a learned loss, in this process: no configuration, no Ray."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.refusals import is_compiled
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.slope_bound import SlopeBound
from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.noise_estimate import NoiseEstimate, estimate_noise
from l2t_ray.core.objective import LearnedObjective, shifted
from l2t_ray.core.student import StudentSgd, Trainee, cross_entropy
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule
from l2t_ray.data.tensors import TensorData
from l2t_ray.interfaces import DivergenceError, Method, MethodState, StudentState, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.phases import Phase, Phases
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.arguments import check_arguments, usable_device
from l2t_ray.training.dry_round import dry_round, first_outputs, with_remedies
from l2t_ray.training.explain import Words
from l2t_ray.training.loop import Arm, Run, StepSizes
from l2t_ray.training.remedies import EAGER, applied
from l2t_ray.training.user_module import check_parameters, copied, initialise_lazy, uncompiled

_LOG = logging.getLogger(__name__)
_LARGE_INPUT = 20.0


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back: the trained model in evaluation mode, the loss it was trained with at the end, and a row a
    round.

    `noise` is the estimate that the loss started from, with its standard errors; None where there was none.
    """

    model: nn.Module
    loss_network: DynamicLossNetwork
    rows: list[dict[str, Any]]
    noise: NoiseEstimate | None


def fit(
    model: nn.Module,
    *,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    num_rounds: int = 300,
    num_steps: int = 15,
    batch_size: int = 25,
    val_batch_size: int = 100,
    learning_rate: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 5e-4,
    warm_share: float = 0.15,
    teacher: Literal["lstm", "adam"] = "adam",
    loss_network: DynamicLossNetwork | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Fit:
    """Trains a copy of `model` on noisy examples under a loss that is learned from clean ones.

    One round is tried first, on a copy of its own (`dry_round`), so that what cannot be trained is refused at once.

    Args:
        model: gives logits `[n, c]` for inputs `[n, ...]`, of any floating-point type; left as it is. It may have more
            outputs than the labels have classes. Lazy modules get their shapes from the validation inputs.
        train: inputs and labels to train on, tensors or NumPy arrays; labels may be wrong, and of any integer type.
        validation: inputs and labels to judge by; small and clean. Never trained on.
        num_rounds: changes of the loss; the model takes `num_rounds * num_steps` SGD steps, with cosine decay.
        warm_share: share of the rounds under plain cross-entropy, after which the label noise is estimated and the
            loss goes on from there (`core/noise_estimate.py`). Short enough that wrong labels are not memorised in it.
            0: the loss is learned from the first round on. 1: it never is.
        teacher: what changes the loss: `adam` on its weights, or the `lstm`.
        loss_network: where the loss begins; None: fitted to cross-entropy, with a noise channel, or with a table of
            label pairs if `warm_share` is 0. The noise is estimated for a loss network with a channel alone.
        device: where it is trained. The sets are kept there if they fit; the trained model is where `model` is.
        on_row: hears the numbers of each round; `test_accuracy` in them is on the validation set.

    Raises:
        UserError: before anything is trained, if an argument is none (`arguments`), the data does not fit together
            (`TensorData`), or the model cannot be copied, evaluated, or differentiated twice.
        DivergenceError: if the training error or a gradient is not finite.
    """
    check_arguments(locals())
    num_rounds, num_steps, batch_size, val_batch_size, seed = map(
        int, (num_rounds, num_steps, batch_size, val_batch_size, seed)
    )
    settings = _Settings(
        num_rounds,
        num_steps,
        batch_size,
        float(learning_rate),
        float(momentum),
        float(weight_decay),
        round(warm_share * num_rounds),
        teacher,
    )
    check_parameters(model)
    place = usable_device(device)
    words = Words(batch_size=f"batch_size={batch_size}", val_batch_size=f"val_batch_size={val_batch_size}")
    # Somebody may call this inside torch.no_grad() or torch.inference_mode().
    with torch.inference_mode(False), torch.enable_grad():
        compiled = any(map(is_compiled, model.modules()))
        student = uncompiled(copied(model))
        home = next(student.parameters()).device
        student.to(place)
        data = TensorData(
            train,
            validation,
            num_steps=num_steps,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            seed=seed,
            device=place,
        )
        first, num_labels = data.dry_round().val.inputs, data.num_classes
        initialise_lazy(student, first, seed)
        outputs = first_outputs(student, first, words)
        data.widen(outputs.shape[1])
        notes = [*([EAGER.note] if compiled else []), *_notes(outputs, num_labels)]
        network = _loss_network(loss_network, num_labels, data.num_classes, settings.warm_rounds > 0, seed)

        def try_a_round() -> None:
            run, _, _ = _built(settings, FlatModule(copied(student)), data, network, seed, place)
            learns = settings.warm_rounds < num_rounds
            dry_round(run.arms[0].method, run.student, run.task, run.group, data.dry_round(), words, learns_loss=learns)
            copied(run.student.module)

        remedies = with_remedies(try_a_round, place)
        for note in (*notes, *(remedy.note for remedy in remedies)):
            _LOG.warning("model %s.", note)
        run, learner, estimates = _built(settings, FlatModule(student), data, network, seed, place)
        with warnings.catch_warnings(), applied(remedies):
            warnings.simplefilter("ignore")  # it is raised, below
            checkpoint = run.train(start=None, store=None, on_row=on_row)
        if checkpoint.diverged:
            raise DivergenceError(*checkpoint.diverged.values())
        run.student.load(checkpoint.state.student.theta, checkpoint.state.student.buffers)
        learned = copied(network, "loss_network")
        with torch.no_grad():
            learned.phi.copy_(learner.learned_loss(checkpoint.state))
        return Fit(
            copied(student).to(home).eval(),
            learned.requires_grad_(False),
            checkpoint.rows,
            estimates[-1] if estimates else None,
        )


# What is no such argument is for the table of rules to say, not for a type checker at run time.
setattr(fit, "__no_type_check__", True)  # noqa: B010


@dataclass(frozen=True)
class _Settings:
    """The numbers among the arguments of `fit`."""

    num_rounds: int
    num_steps: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    warm_rounds: int
    teacher: str

    @property
    def sgd(self) -> StudentSgd:
        base, total = self.learning_rate, self.num_rounds * self.num_steps
        return StudentSgd(
            lambda step: base * (1 + cos(pi * step / total)) / 2, self.num_steps, self.momentum, self.weight_decay
        )


def _loss_network(
    given: DynamicLossNetwork | None, num_labels: int, num_classes: int, has_channel: bool, seed: int
) -> DynamicLossNetwork:
    """The loss to begin with; one that is given is copied.

    Raises:
        UserError: if it is for another number of classes.
    """
    if given is None:
        return DynamicLossNetwork(
            init="cross_entropy",
            pairs="softmax",
            activation="silu",
            channel=num_classes if has_channel else None,
            label_table=None if has_channel else num_classes,
            seed=seed,
        )
    if given.spec.num_classes not in (None, num_classes):
        raise UserError(
            f"loss_network is for {given.spec.num_classes} classes, and the labels have {num_labels}, model "
            f"{num_classes} outputs; make one for {num_classes}, or leave it out."
        )
    return copied(given, "loss_network")


def _built(
    settings: _Settings,
    student: FlatModule,
    data: TensorData,
    loss_network: DynamicLossNetwork,
    seed: int,
    device: torch.device,
) -> tuple[Run, L2TDLN, list[NoiseEstimate]]:
    """Everything that is trained, at its beginning; the list is filled with what is found of the noise."""
    group, task, warm_rounds = SingleProcess(), Classification(), settings.warm_rounds
    loss = PairLoss(loss_network, task)
    phi = loss.phi
    rule = adam = AdamRule(phi.numel(), clip=1.0)
    if settings.teacher == "lstm":
        lstm = LSTMTeacher((20, 20), head="linear", seed=seed)
        rule = LstmRule(lstm, phi.numel(), step_size=3e-4, horizon=10, clip=1.0, base=adam)
    local = LocalTeacher(phi, rule, SlopeBound(loss.spec, phi))
    estimates: list[NoiseEstimate] = []

    trainee = Trainee(student, task, settings.sgd, group, device)
    memory = Memory(trainee, data.num_train, data.num_classes) if loss.reads_memory else None
    has_offset = bool(warm_rounds and loss.has_channel)
    learner = L2TDLN(LearnedObjective(trainee, loss, has_offset=has_offset, memory=memory), local)

    def with_estimate(state: MethodState, index: int) -> MethodState:
        del index
        estimates.append(_estimated_noise(student, state.student, data))
        phi = local.read().phi.to(device)
        return shifted(state, loss.shift_to(estimates[-1].channel.to(phi), phi))

    method: Method = learner
    if warm_rounds:
        plain = FixedLoss(trainee, cross_entropy, memory=memory)
        on_enter = with_estimate if loss.has_channel else None
        method = Phases([Phase(0, plain, data), Phase(warm_rounds, learner, data, on_enter)])
    run = Run(
        arms=[Arm("l2t_dln", method, local)],
        student=student,
        task=task,
        data=data,
        group=group,
        num_rounds=settings.num_rounds,
        num_steps=settings.num_steps,
        images_per_round=settings.num_steps * settings.batch_size,
        eval_every=25,
        checkpoint_every=settings.num_rounds,
        tests_on_validation=True,
        seed=seed,
        step_sizes=StepSizes("learning_rate", None),
        other_advice=_about_inputs(data.extremes.largest),
    )
    return run, learner, estimates


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


@torch.no_grad()
def _estimated_noise(student: FlatModule, trained: StudentState, data: TensorData) -> NoiseEstimate:
    """The noise of the training labels, as this student and the validation labels show it."""
    said, labels = [], []
    for batches in (data.validation(0), data.training_examples()):
        pairs = [
            (student(trained.theta, trained.buffers, batch.inputs, training=False), batch.targets) for batch in batches
        ]
        said.append(torch.cat([logits for logits, _ in pairs]).double().log_softmax(dim=1))
        labels.append(torch.cat([targets for _, targets in pairs]))
    estimate = estimate_noise(said[0], labels[0], said[1], labels[1], num_classes=data.num_classes)
    _LOG.info("label noise: %s", estimate)
    return estimate
