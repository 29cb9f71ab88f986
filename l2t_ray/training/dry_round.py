"""A round that is only tried: what a model cannot do is found before anything is trained, and said in a sentence."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2t_ray.bilevel.derivative_check import check_derivatives
from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.bilevel.flat import FlatModule, clone_buffers
from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.family import KeptFamily
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.student import outputs_of
from l2t_ray.data.examples import combined
from l2t_ray.interfaces import Batch, DivergenceError, Group, Method, RoundBatches, Task, UserError
from l2t_ray.methods.phases import methods_of
from l2t_ray.training.evaluate import evaluate
from l2t_ray.training.explain import DryPlace, Words, check_finite, check_outputs, explained
from l2t_ray.training.remedies import Remedy, applied, remedy_for
from l2t_ray.training.user_module import answer, in_evaluation_mode

_LOG = logging.getLogger(__name__)


_NUDGE = 0.05
"""Of the weights' root mean square."""


def first_outputs(module: nn.Module, inputs: Any, words: Words, *, are_logits: bool = True) -> Any:
    """What the module as it is says of inputs, in evaluation mode.

    Args:
        are_logits: they are to be logits `[n, c]`.

    Raises:
        UserError: if it fails on them, or gives no logits.
    """
    dtype = next(parameter for parameter in module.parameters() if parameter.requires_grad).dtype
    place = DryPlace("evaluated", words.validation, words.val_batch_size, inputs, dtype)
    with torch.no_grad(), unmoved_draws(place.first.device), explained(words, place), in_evaluation_mode(module):
        outputs = answer(module, inputs)
    if are_logits:
        check_outputs(outputs, words, place)
    return outputs


def with_remedies(attempt: Callable[[], object], device: torch.device) -> list[Remedy]:
    """What it took for `attempt` to succeed. It may be made several times, and leaves random numbers as they are.

    Raises:
        UserError: what the attempt raised, if nothing helps.
    """
    remedies: list[Remedy] = []
    while True:
        try:
            with applied(remedies), unmoved_draws(device):
                attempt()
            return remedies
        except UserError as failure:
            remedy = remedy_for(failure.__cause__, remedies)
            if remedy is None:
                raise
            remedies.append(remedy)


def dry_round(
    method: Method,
    student: FlatModule,
    task: Task,
    group: Group,
    batches: RoundBatches,
    words: Words,
    *,
    learns_loss: bool = True,
) -> None:
    """Evaluates, takes a step, and differentiates through it: all that training will do, on one minibatch of each kind.

    The method and its student are not to be trained afterwards: their state and modules may have moved.

    Args:
        batches: one or two training minibatches and a validation minibatch.
        learns_loss: False: only what training under a fixed loss needs.

    Raises:
        UserError: in the caller's words, if any of it fails or gives numbers that are not finite.
    """
    state = method.init().student
    theta, buffers = state.theta, state.buffers
    train, val = batches.train[0], batches.val

    def place(doing: str, batch: Batch) -> DryPlace:
        is_val = batch is val
        data, key = (words.validation, words.val_batch_size) if is_val else (words.train, words.batch_size)
        return DryPlace(doing, data, key, batch.inputs, theta.dtype)

    def look_at(outputs: Any, here: DryPlace) -> None:
        if task.row_is_example:  # other tasks' outputs are for them to know
            check_outputs(outputs, words, here)

    with explained(words, here := place("evaluated", val)), torch.no_grad():
        look_at(outputs_of(student, theta, buffers, val, training=False), here)
        evaluate(student, state, task, [val], group)
    with explained(words, place("differentiated", train)):
        if isinstance(train.inputs, Mapping):
            unused = student.check(theta, buffers, **train.inputs)
        else:
            unused = student.check(theta, buffers, train.inputs)
    if unused:
        _LOG.warning(
            "%s: %s had no part in the output of a minibatch. A parameter without a gradient is trained as one whose "
            "gradient is zero, so weight decay and momentum move it, where torch.optim would skip it.",
            words.model,
            ", ".join(unused[:3]) + (", ..." if unused[3:] else ""),
        )
    for batch in (train, val):
        with explained(words, here := place("differentiated", batch)):
            leaf = theta.clone().requires_grad_()
            outputs = outputs_of(student, leaf, clone_buffers(buffers), batch, training=True)
            look_at(outputs, here)
            (gradient,) = torch.autograd.grad(task.error(outputs, batch, group), leaf)
            check_finite(gradient, "gradient", words, here)
    with explained(words, here := place("differentiated twice", train)):
        for part in methods_of(method):
            if not isinstance(part, L2TDLN):
                with suppress(DivergenceError):  # of the learning rate, which is the arm's own affair
                    part.round(part.init(), batches, 0)
            elif learns_loss:
                _try_products(part, batches, words, here)
                if isinstance(part.objective.loss, KeptFamily):
                    _try_export(part.objective.loss)


def _try_products(method: L2TDLN, batches: RoundBatches, words: Words, place: DryPlace) -> None:
    method.objective.report(method.objective.initial_phi(), method.init())
    result = method.dry_unroll(batches)
    check_finite(result.gradient, "second derivative", words, place)
    problem, student, phi = method.objective.dry_problem(batches)
    student = student._replace(theta=_nudged(student.theta))
    found = check_derivatives(problem, student, phi, batches.train[0], engine=method.engine, otherwise=words.otherwise)
    if found.sentence:
        _LOG.warning("%s", found.sentence)


def _nudged(theta: Tensor) -> Tensor:
    """Weights nearby, where none is zero: behind a head that starts at zero, a missing derivative could not be seen."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    return theta + _NUDGE * noise * theta.square().mean().sqrt().clamp(min=_NUDGE)


def _try_export(loss: KeptFamily) -> None:
    """Writes the loss to a temporary place and reads it again.

    Raises:
        UserError: if it is not the same then.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "loss.safetensors"
        loss_file.write(path, loss.family, asdict(loss.spec), loss.phi)
        if not torch.equal(loss_file.read(path, {loss.family: loss.spec_type})[2], loss.phi.cpu()):
            raise UserError("the learned loss cannot be saved: what is read again is not what was written.")


def shortened(batches: RoundBatches, num_train: int, num_val: int) -> RoundBatches:
    """The first minibatch twice, for two steps, and the validation minibatch, of so many examples at most."""

    def cut(batch: Batch, count: int) -> Batch:
        few = Batch(*(combined(lambda part: part[:count], values) for values in batch))
        # An example's share is that of one of its rows, of which the others have about as many.
        return few._replace(weights=few.weights * (len(batch.weights) / len(few.weights)))

    train = cut(batches.train[0], num_train)
    return RoundBatches([train, train], cut(batches.val, num_val))
