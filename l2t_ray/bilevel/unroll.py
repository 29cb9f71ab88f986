"""K steps of the student's optimizer under the current loss, with everything the way back will need.

    theta_{k+1} = step(theta_k, d L_phi(theta_k; D_k) / d theta, alpha_k)          (`optimizers.py`)

On several workers each adds its share of the gradient; the sum is the gradient of the global minibatch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.optimizers import PLAIN_SGD, Optimizer, Trace
from l2t_ray.interfaces import Batch, Group, StudentState
from l2t_ray.timing import part

InnerLoss = Callable[
    [Float[Tensor, " p"], Float[Tensor, " m"], Mapping[str, Tensor], Batch],
    tuple[Float[Tensor, ""], Float[Tensor, "n c"]],
]
"""`(theta, phi, buffers, batch) -> (this worker's share of the loss, the logits it was computed from)`.

Batch-norm statistics in `buffers` are updated in place; nothing else may change.
"""

OuterError = Callable[[Float[Tensor, " p"], Mapping[str, Tensor], Batch], Float[Tensor, ""]]
"""`(theta, buffers, batch) -> this worker's share of the validation error`."""

Reweigh = Callable[[Float[Tensor, " p"], Mapping[str, Tensor], Batch], Batch]
"""Gives a minibatch its sample weights, from the student as it is before the step. Constant for the derivatives."""


@dataclass(frozen=True)
class InnerProblem:
    """What the student minimises and how, and the validation error of the loss network."""

    inner_loss: InnerLoss
    outer_error: OuterError
    group: Group
    optimizer: Optimizer = PLAIN_SGD
    reweigh: Reweigh | None = None


class StepStatistics(NamedTuple):
    """Of one student step, kept on the device until the round is over: asking at each step would stall a GPU."""

    loss: Float[Tensor, ""]  # this worker's share
    logit_gradient_sum: Float[Tensor, ""]  # sum |dL/dz| over the minibatch (supplement, Fig. 1); this worker's share
    gradient_norm: Float[Tensor, ""]  # ||dL/dtheta||_2 of the global minibatch


GradientStep = Callable[[Tensor, Mapping[str, Tensor], Batch], tuple[Tensor, Tensor, Tensor]]
"""`(theta, buffers, batch) -> (gradient share, loss share, gradient in the logits)`."""


def loss_gradients(
    problem: InnerProblem,
    theta: Float[Tensor, " p"],
    phi: Float[Tensor, " m"],
    buffers: Mapping[str, Tensor],
    batch: Batch,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`d L / d theta`, L and `d L / d logits`, this worker's shares. `theta` must require gradients."""
    loss, logits = problem.inner_loss(theta, phi, buffers, batch)
    gradient, logit_gradient = torch.autograd.grad(loss, (theta, logits), create_graph=create_graph)
    return gradient, loss.detach(), logit_gradient.detach()


@part("unroll")
def student_steps(
    problem: InnerProblem,
    student: StudentState,
    batches: Sequence[Batch],
    rates: Sequence[float],
    step_gradient: GradientStep,
    on_step: Callable[[Trace], None] = lambda trace: None,
) -> tuple[StudentState, list[StepStatistics]]:
    """Takes one step of the optimizer a batch, with gradients from `step_gradient`, and says how it went.

    `on_step` hears what the way back through each step has to know.

    The given student is not changed. Buffers (batch-norm statistics) move with the steps that are taken here, and
    are what the returned state holds; they are averaged over workers at the end, so that replicas stay replicas.
    """
    student, buffers = student._replace(buffers={}), clone_buffers(student.buffers)
    statistics = student.theta.new_empty(len(batches), len(StepStatistics._fields))
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        if problem.reweigh is not None:
            batch = problem.reweigh(student.theta, buffers, batch)
        gradient, loss, logit_gradient = step_gradient(student.theta, buffers, batch)
        gradient = problem.group.sum(gradient)
        student, trace = problem.optimizer.step(student, gradient, rate)
        on_step(trace)
        with torch.no_grad():
            row = StepStatistics(loss, logit_gradient.abs().sum(), torch.linalg.vector_norm(gradient))
            statistics[step] = torch.stack(row)
    student = student._replace(buffers=average_buffers(buffers, problem.group))
    return student, [StepStatistics(*row) for row in statistics]


def plain_steps(
    problem: InnerProblem,
    student: StudentState,
    phi: Float[Tensor, " m"],
    batches: Sequence[Batch],
    rates: Sequence[float],
) -> tuple[StudentState, list[StepStatistics]]:
    """`student_steps` under the loss `phi`, keeping nothing for a way back."""

    def gradient(theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return loss_gradients(problem, theta.detach().requires_grad_(), phi, buffers, batch)

    return student_steps(problem, student, batches, rates, gradient)


def average_buffers(buffers: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """The mean over workers of every floating-point buffer, in one collective. Counters are the same on all."""
    floating = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
    if group.size == 1 or not floating:
        return dict(buffers)
    mean = group.sum(torch.cat([buffer.reshape(-1) for buffer in floating.values()])) / group.size
    pieces = mean.split([buffer.numel() for buffer in floating.values()])
    averaged = {name: piece.view(buffer.shape) for (name, buffer), piece in zip(floating.items(), pieces, strict=True)}
    return {**buffers, **averaged}
