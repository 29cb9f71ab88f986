"""Inspection of a run, which changes nothing in it: its trained students, and its hypergradient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.assembly.run import build_run, build_trainee
from l2t_ray.assembly.sources import AnySource
from l2t_ray.assembly.students import build_schedule
from l2t_ray.assembly.trial import OTHERWISE
from l2t_ray.bilevel.derivative_check import check_derivatives
from l2t_ray.bilevel.double import doubled
from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.unroll import plain_steps
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.interfaces import Batch, Method, StudentState, UserError
from l2t_ray.methods.phases import methods_of
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig


class Answers(NamedTuple):
    """What a student says of each test image, in order: a class, and how probable it holds that to be."""

    predictions: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Inspection:
    """What a trained student predicts: the confusion matrix of the test images (row the class, column the
    prediction), the share of wrong training labels that it has memorised (None where none is known to be wrong), and
    its answers, where there is one an image."""

    confusion: Int[np.ndarray, "c c"]
    memorised: float | None
    answers: Answers | None = None


@torch.no_grad()
def inspect_students(
    config: ExperimentConfig, source: AnySource, students: Mapping[str, StudentState]
) -> dict[str, Inspection]:
    """Evaluates each trained student on all test images and all training images with wrong labels; none where images
    have boxes."""
    if isinstance(source.dataset, BoxedDataset):
        return {}  # boxes that are found have no confusion matrix
    trainee, data, device = build_trainee(config, source, SingleProcess()), source.plain(), source.device
    num_classes, corrupted = data.num_classes, source.corrupted
    ignored = source.dataset.train.ignore if isinstance(source.dataset, MaskedDataset) else None
    inspections = {}
    for arm, state in students.items():
        theta = state.theta.to(device)
        buffers = {name: buffer.to(device) for name, buffer in state.buffers.items()}

        def logits_of(batch: Batch, theta=theta, buffers=buffers) -> torch.Tensor:
            return trainee.student(theta, buffers, batch.inputs, training=False)

        confusion, probabilities, predictions = np.zeros((num_classes, num_classes), dtype=np.int64), [], []
        for batch in data.test():
            logits = logits_of(batch)
            truth, said = batch.targets.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
            if ignored is None:
                predictions.append(said)
                probabilities.append(logits.double().softmax(dim=1).amax(dim=1).cpu().numpy())
            counts = truth != ignored
            np.add.at(confusion, (truth[counts], said[counts]), 1)
        memorised = None
        if corrupted is not None:
            batches = source.images(corrupted.rows[corrupted.is_wrong])
            memorised = (
                torch.cat([logits_of(batch).argmax(dim=1) == batch.targets for batch in batches]).double().mean().item()
            )
        answers = Answers(np.concatenate(predictions), np.concatenate(probabilities)) if predictions else None
        inspections[arm] = Inspection(confusion, memorised, answers)
    return inspections


def learner_of(method: Method) -> L2TDLN:
    """The method whose loss is learned, in whichever phase.

    Raises:
        UserError: if there is none.
    """
    learner = next((part for part in methods_of(method) if isinstance(part, L2TDLN)), None)
    if learner is None:
        raise UserError("--check-hypergradient is for methods whose round is that of l2t_dln, and this has its own.")
    return learner


def check_hypergradient(config: ExperimentConfig) -> tuple[dict[str, float], bool]:
    """Relative errors on the first real round: of the engine in use against naive autograd in float64, and of that
    against finite differences, which alone can tell a derivative that autograd takes for zero.

    Returns:
        `float64`: the engine in double precision; `float32`: as it is used; `finite differences`: of naive autograd,
        along the hypergradient. And whether the engine is an exact one, which is not to differ in double precision by
        more than rounding.

    Raises:
        UserError: if the method has no hypergradient, or a derivative that it needs is missing or not finite.
    """
    method = config.method
    if not method.has_teacher:
        raise UserError(f"--check-hypergradient needs a method with a teacher, as l2t_dln is, got {method.name!r}.")
    group, device = SingleProcess(), torch.device("cpu")
    run = build_run(config.model_copy(update={"controls": ()}), group=group, device=device)
    arm = run.arms[0]
    assert arm.teacher is not None
    learner = learner_of(arm.method)
    phi = arm.teacher.read().phi
    engine, horizon = learner.engine, getattr(method, "horizon", None)
    student, batches = learner.init().student, run.data.round(0)
    rates = build_schedule(config.training).rates(0, len(batches.train))

    # Sample weights are constants for both sides.
    problem = replace(learner.objective.first_problem(batches), reweigh=None)
    check_derivatives(problem, student, phi, batches.train[0], engine=engine, seed=config.seed, otherwise=OTHERWISE)

    in_float32 = student, phi, list(batches.train), batches.val
    in_float64 = (
        StudentState(*map(doubled, student)),
        phi.double(),
        [Batch(*map(doubled, batch)) for batch in batches.train],
        Batch(*map(doubled, batches.val)),
    )

    def of_engine(start: StudentState, weights: Tensor, train: list[Batch], val: Batch) -> Tensor:
        with counted_draws(config.seed, device):
            result = hypergradient(problem, start, weights, train, val, rates=rates, engine=engine, horizon=horizon)
        return result.gradient.double()

    def error_at(weights: Tensor) -> float:
        start, _, train, val = in_float64
        with counted_draws(config.seed, device), torch.no_grad():
            with torch.enable_grad():
                trained, _ = plain_steps(problem, start, weights, train, rates)
            return problem.outer_error(trained.theta, clone_buffers(trained.buffers), val).item()

    with counted_draws(config.seed, device):
        start, weights, train, val = in_float64
        reference = naive_hypergradient(problem, start, weights, train, val, rates=rates).gradient
    is_exact = horizon is None and engine not in ("one_step", "finite_difference")
    errors = {
        name: ((of_engine(*given) - reference).norm() / reference.norm()).item()
        for name, given in (("float64", in_float64), ("float32", in_float32))
    }
    errors["finite differences"] = _slope_error(error_at, in_float64[1], reference)
    return errors, is_exact


def _slope_error(error_at: Callable[[Tensor], float], phi: Tensor, gradient: Tensor) -> float:
    """How far the gradient's norm is from the slope along it, relative: the best of central differences of several
    radii, for training under ReLU has jumps."""
    along, size = gradient / gradient.norm(), phi.norm().clamp(min=1.0)
    errors = []
    for radius in (1e-9, 1e-10, 1e-11):
        step = radius * size
        slope = (error_at(phi + step * along) - error_at(phi - step * along)) / (2 * step)
        errors.append(abs(slope / gradient.norm() - 1).item())
        if errors[-1] < 1e-3:
            break
    return min(errors)
