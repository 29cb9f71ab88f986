"""What the student minimises in a round under a learned loss.

    sum_i w_i l_i,   l_i = L_{phi + offset}(row i, memory of its image), or cross-entropy where its label is trusted

Memory, class centres (which give the w_i) and offset are constants of a round: they are brought up to date before its
first step, and the hypergradient is exact with them as they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.core.loss.brought import fixed_of, losses_of, report_of
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.reweight import ClassCenters
from l2t_ray.core.student import Trainee
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches, StudentState

OFFSET = "offset"
"""Entry of a method's `extra`: what is added to the teacher's phi to have the loss that is in use."""


class LearnedObjective:
    """The learned loss of a run, with all that is constant in a round."""

    def __init__(
        self,
        trainee: Trainee,
        loss: LossFamily,
        *,
        has_offset: bool = False,
        memory: Memory | None = None,
        centers: ClassCenters | None = None,
        is_clean: Bool[Tensor, " images"] | None = None,
        phi: Float[Tensor, " m"] | None = None,
    ):
        """
        Args:
            loss: the loss, as a function of phi; its own weights are no more than where phi begins.
            has_offset: something is added to phi in the course of the training (`shifted`).
            memory: what the student said of each image so far; needed where the loss reads it.
            centers: data reweighting; None: every sample of a minibatch counts alike.
            is_clean: by image of the training set (`Batch.indices`), whether its label is to be trusted; where such
                images are trained on, it is with plain cross-entropy. None: no image is.
            phi: where phi begins; None: the loss's own weights.

        Raises:
            ValueError: if the loss has a memory and none is given.
        """
        if loss.reads_memory and memory is None:
            raise ValueError("a loss with a memory needs one: what the student said of each image.")
        self.trainee, self.loss = trainee, loss
        self._has_offset, self._centers, self._is_clean = has_offset, centers, is_clean
        self._phi = loss.phi if phi is None else phi
        self._memory = memory if loss.reads_memory else None

    def init(self) -> MethodState:
        offset = {OFFSET: torch.zeros_like(self.initial_phi())} if self._has_offset else {}
        memory = {} if self._memory is None else self._memory.begin()
        return MethodState(self.trainee.initial(), {**offset, **memory})

    def initial_phi(self) -> Float[Tensor, " m"]:
        return self._phi.to(self.trainee.device)

    def constants_of_round(self, state: MethodState, batches: RoundBatches, index: int) -> MethodState:
        """Memory and class centres as they are in the round."""
        if self._memory is not None:
            state = self._memory.updated(state, batches)
        return state if self._centers is None else self._centers.refreshed(state, index)

    def in_use(self, phi: Float[Tensor, " m"], state: MethodState) -> Float[Tensor, " m"]:
        """The weights that the student trains under, where the teacher has phi."""
        phi, offset = phi.to(self.trainee.device), state.extra.get(OFFSET)
        return phi if offset is None else phi + offset.to(phi)

    def problem(self, state: MethodState) -> InnerProblem:
        """What the student minimises, with the constants of the round."""
        problem = self.trainee.problem(partial(self._loss, memory=state.extra.get("memory")))
        return problem if self._centers is None else replace(problem, reweigh=self._centers.reweigh(state))

    def first_problem(self, batches: RoundBatches) -> InnerProblem:
        """What the student minimises in a first round; for checks from outside."""
        return self.problem(self.constants_of_round(self.init(), batches, 0))

    def dry_problem(self, batches: RoundBatches) -> tuple[InnerProblem, StudentState, Float[Tensor, " m"]]:
        """Problem, student and loss of a first round, as if all samples counted alike: a few of them are no base for
        class centres."""
        state = self.init() if self._memory is None else self._memory.updated(self.init(), batches)
        problem = self.trainee.problem(partial(self._loss, memory=state.extra.get("memory")))
        return problem, state.student, self.initial_phi()

    def report(self, phi: Float[Tensor, " m"], state: MethodState) -> Metrics:
        """What the loss in use says of itself."""
        return report_of(self.loss, self.in_use(phi, state))

    def _loss(
        self,
        theta: Tensor,
        phi: Tensor,
        buffers: Mapping[str, Tensor],
        batch: Batch,
        memory: Float[Tensor, "images c"] | None,
    ) -> tuple[Float[Tensor, ""], Tensor]:
        terms = self.trainee.terms(theta, buffers, batch)
        losses = losses_of(self.loss, phi, terms, None if memory is None else memory[batch.indices])
        values = losses.values
        if self._is_clean is not None:
            values = torch.where(self._is_clean[batch.indices[losses.owner]], fixed_of(self.loss, terms), values)
        total = (losses.weights * values).sum()
        rest = terms.rest if losses.rest is None else losses.rest
        return total if rest is None else total + rest, terms.outputs

    def sample_weights(self, phi: Float[Tensor, " m"], state: MethodState, batch: Batch) -> Float[Tensor, " n"] | None:
        """How hard the learned loss pushes each sample's logits, relative to cross-entropy (`interfaces.Weighing`).

        None where a sample is not one class decision, or the loss does not read it as one.
        """
        if not self.trainee.task.row_is_example:
            return None
        with torch.no_grad():
            terms = self.trainee.seen_terms(state.student, batch)
        rows = terms.rows
        if rows is None:
            return None
        logits, memory = rows.logits.detach().requires_grad_(), state.extra.get("memory")
        terms = terms._replace(outputs=logits, rows=rows._replace(logits=logits))
        with torch.enable_grad():
            own_memory = None if memory is None else memory[batch.indices]
            losses = losses_of(self.loss, self.in_use(phi, state), terms, own_memory)
            if not losses.values.requires_grad:
                return None
            (push,) = torch.autograd.grad(losses.values.sum(), logits)
        label = F.one_hot(rows.labels, logits.shape[1])
        reference = torch.linalg.vector_norm(logits.detach().softmax(dim=1) - label, dim=1)
        ratio = torch.linalg.vector_norm(push, dim=1) / reference.clamp(min=torch.finfo(reference.dtype).eps)
        if self._centers is None or "centers" not in state.extra:
            return ratio
        student = state.student
        return ratio * self._centers.reweigh(state)(student.theta, student.buffers, batch).weights


def shifted(state: MethodState, offset: Float[Tensor, " m"]) -> MethodState:
    """The state with another offset."""
    return state._replace(extra={**state.extra, OFFSET: offset})
