"""L2T-DLN on one page: the student trains under the loss network, the teacher rewrites it.

One round, with student theta, loss network phi and validation error e:

1. unroll     K SGD steps of the student under L_phi
2. gradient   g = d e(theta_K) / d phi, exactly, through all K steps
3. propose    the teacher moves phi along what it makes of g
4. learn      the teacher learns from how its proposal turned out

`pipelined` keeps theta_K of that one unroll; the hypergradient of the next round, taken at the proposed phi on new
data, is how the proposal turned out. `lookahead` (the released code) unrolls a second time from the same theta_0 on
the same minibatches under the proposed phi; that unroll's end is kept and its hypergradient is learned from.
"""

import logging
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.engine_choice import agreed_engine
from l2t_ray.bilevel.engines import EngineName
from l2t_ray.bilevel.hypergradient import Hypergradient, hypergradient
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.core.divergence import advised
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.round_metrics import round_metrics
from l2t_ray.interfaces import Batch, LossParams, MethodState, Metrics, RoundBatches, StudentState, Teacher
from l2t_ray.timing import part

_LOG = logging.getLogger(__name__)

Schedule = Literal["pipelined", "lookahead"]
DRY_RATE = 1e-3


class L2TDLN:
    """The method. The student's model is a template here: its state travels in `MethodState`."""

    def __init__(
        self,
        objective: LearnedObjective,
        teacher: Teacher,
        *,
        schedule: Schedule = "pipelined",
        engine: EngineName | Literal["auto"] = "store",
        horizon: int | None = None,
        per_rate: bool = False,
        keeps_buffers: bool = True,
    ):
        """See `docs/notation.md` for the symbols.

        Args:
            objective: the student, and the loss that it is trained under; the loss's weights are the teacher's to say.
            engine: how second-order products are computed (`ENGINES`); `auto`: chosen, and logged, at the first
                round; the workers agree on one.
            horizon: student steps the hypergradient goes back through; None: all of a round's.
            per_rate: hypergradients are divided by the student's learning rate, mean over the round's steps.
            keeps_buffers: False reproduces the released code, which trains a copy and copies back parameters alone,
                so that batch-norm statistics stay as initialised (docs/released.md, D5).
        """
        self.objective, self._trainee, self._teacher = objective, objective.trainee, teacher
        self._schedule, self._horizon, self._keeps_buffers = schedule, horizon, keeps_buffers
        self._per_rate = per_rate
        self._engine: EngineName | Literal["auto"] = engine

    @property
    def engine(self) -> EngineName:
        """The engine in use; `store` as long as none has been chosen."""
        return "store" if self._engine == "auto" else self._engine

    def init(self) -> MethodState:
        return self.objective.init()

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        """One round of training (module docstring)."""
        state = self.objective.constants_of_round(state, batches, index)
        rates, phi = self._trainee.schedule.rates(index, len(batches.train)), self._teacher.read()
        unrolled = first = self._unroll(state, phi, batches, rates)
        in_use = self.objective.in_use(phi.phi, state)
        with advised(lambda: (self.objective.problem(state), state.student, in_use, unrolled, batches, rates)):
            proposed = self._teacher.propose(phi.version, first.gradient, _value_of(first.error))
            if self._schedule == "lookahead":
                unrolled = self._unroll(state, proposed, batches, rates)
                self._teacher.learn(proposed.version, unrolled.gradient)
            else:
                self._teacher.learn(phi.version)
        return self._after(state, unrolled), self._report(state, first, unrolled, phi, proposed, rates[-1])

    def _unroll(
        self, state: MethodState, params: LossParams, batches: RoundBatches, rates: list[float]
    ) -> Hypergradient:
        """K student steps under the loss with these weights, and the derivative of the error at their end."""
        phi = self.objective.in_use(params.phi, state)
        return self._hypergradient(self.objective.problem(state), state.student, phi, batches, rates)

    def dry_unroll(self, batches: RoundBatches) -> Hypergradient:
        """A first unroll to try things out, of steps that are too small to diverge. The teacher is not asked."""
        return self._hypergradient(*self.objective.dry_problem(batches), batches, [DRY_RATE] * len(batches.train))

    def _hypergradient(
        self, problem: InnerProblem, student: StudentState, phi: Tensor, batches: RoundBatches, rates: list[float]
    ) -> Hypergradient:
        result = hypergradient(
            problem,
            student,
            phi,
            batches.train,
            batches.val,
            rates=rates,
            engine=self._chosen_engine(problem, student, phi, batches),
            horizon=self._horizon,
        )
        rate = sum(rates) / len(rates)
        return result._replace(gradient=result.gradient / rate) if self._per_rate and rate else result

    def _chosen_engine(
        self, problem: InnerProblem, student: StudentState, phi: Tensor, batches: RoundBatches
    ) -> EngineName:
        if self._engine == "auto":
            num_steps = min(self._horizon or len(batches.train), len(batches.train))
            choice = agreed_engine(problem, student, phi, batches.train[0], num_steps)
            _LOG.info("engine: %s (%s)", choice.engine, choice.reason)
            self._engine = choice.engine
        return self._engine

    def _after(self, state: MethodState, unrolled: Hypergradient) -> MethodState:
        student = unrolled.student
        return state._replace(
            student=student if self._keeps_buffers else student._replace(buffers=state.student.buffers)
        )

    def _report(
        self,
        state: MethodState,
        first: Hypergradient,
        unrolled: Hypergradient,
        phi: LossParams,
        proposed: LossParams,
        rate: float,
    ) -> Metrics:
        group, phi_step = self._trainee.group, proposed.phi - phi.phi
        metrics = round_metrics(group, unrolled.error, unrolled.statistics)
        metrics["lr"] = rate
        metrics["hypergradient_norm"] = torch.linalg.vector_norm(group.sum(first.gradient.clone())).item()
        metrics["phi_step_norm"] = torch.linalg.vector_norm(phi_step).item()
        metrics["phi_step_max"] = phi_step.abs().max().item()
        return metrics | proposed.observed | self.objective.report(phi.phi, state)

    def learned_loss(self, state: MethodState) -> Float[Tensor, " m"]:
        """The weights of the loss that is in use (`interfaces.LearnsLoss`)."""
        return self.objective.in_use(self._teacher.read().phi, state)

    def sample_weights(self, state: MethodState, batch: Batch, index: int) -> Float[Tensor, " n"] | None:
        """See `LearnedObjective.sample_weights`."""
        del index
        return self.objective.sample_weights(self._teacher.read().phi, state, batch)


@part("hypergradient")
def _value_of(error: Tensor) -> float:
    return error.item()  # on a GPU this waits until the way back is done
