"""Why a round has no finite hypergradient, and what helps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from l2t_ray.bilevel.derivative_check import not_finite_advice
from l2t_ray.bilevel.hypergradient import Hypergradient
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.core.round_metrics import round_metrics
from l2t_ray.interfaces import DivergenceError, RoundBatches, StudentState

Round = tuple[InnerProblem, StudentState, Float[Tensor, " m"], Hypergradient, RoundBatches, Sequence[float]]
"""Problem, student at its start, loss in use, the latest unroll, minibatches and rates."""


@contextmanager
def advised(of_round: Callable[[], Round]) -> Iterator[None]:
    """Inside, a divergence that the teacher notices comes with advice: where steps or error were bad already, theirs,
    else about the second derivative.

    Args:
        of_round: the round as it is when that happens.
    """
    try:
        yield
    except DivergenceError as failure:
        problem, student, phi, unrolled, batches, rates = of_round()
        try:
            round_metrics(problem.group, unrolled.error, unrolled.statistics)
        except DivergenceError as earlier:
            advice, is_before_steps = earlier.advice, earlier.is_before_steps
        else:
            advice, is_before_steps = not_finite_advice(problem, student, phi, batches.train, rates), False
        raise DivergenceError(str(failure), advice=advice, is_before_steps=is_before_steps) from None
