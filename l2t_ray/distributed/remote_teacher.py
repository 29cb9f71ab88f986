"""The teacher as a worker sees it: the same protocol, with the actor at the other end."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
import torch
from jaxtyping import Float
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from l2t_ray.distributed.teacher_actor import StaleAttemptError
from l2t_ray.interfaces import Group, LossParams, Metrics
from l2t_ray.timing import part

RETRY_S = 0.1
ALIVE_S = 10.0
"""A teacher that is alive says within this time whom it is waiting for."""

Answer = TypeVar("Answer")


class TeacherLostError(RuntimeError):
    """The teacher died, or came back without its memory. Raised by all workers of the group at the same call."""


class RemoteTeacher:
    """Speaks to the teacher actor for one worker.

    The group sums one number after each answer. A worker that missed its answer would otherwise leave alone, and the
    others would wait for it in their next collective; so all of them leave together, and can begin again together.

    Args:
        actor: a `TeacherService`.
        timeout_s: longest wait for an answer; the actor waits for the slowest worker before it answers.
    """

    def __init__(self, actor: Any, group: Group, *, timeout_s: float):
        self._actor, self._group, self._timeout_s = actor, group, timeout_s
        self._attempt = 0
        self._params: LossParams | None = None
        self._learning: Any = None  # the reference of the latest call

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """As `Teacher.begin`, in a new attempt; waits for a teacher that is just being restarted."""
        attempt = self._begun(state) if self._group.rank == 0 else 0
        # The sum also keeps everybody from speaking before rank 0 has begun.
        self._attempt = int(self._group.sum(torch.tensor([attempt], device=_collective_device())).item())
        self._learning = None
        self._params = self._together(lambda: self._received(self._get(self._actor.read.remote(self._attempt))))

    def read(self) -> LossParams:
        assert self._params is not None, "begin() comes first"
        return self._params

    @part("teacher")
    def propose(self, version: int, hypergradient: Float[Tensor, " m"], error: float) -> LossParams:
        share = hypergradient.detach().cpu().numpy()

        def ask() -> LossParams:
            self._await_learning()
            answer = self._actor.propose.remote(self._attempt, self._group.rank, version, error, share)
            return self._received(self._get(answer))

        self._params = self._together(ask)
        return self._params

    @part("teacher")
    def learn(self, version: int, hypergradient: Float[Tensor, " m"] | None = None) -> None:
        if hypergradient is None and self._group.rank != 0:
            return
        share = None if hypergradient is None else hypergradient.detach().cpu().numpy()
        self._learning = self._actor.learn.remote(self._attempt, self._group.rank, version, share)

    def state_dict(self) -> dict[str, Any]:
        """The teacher's state; empty on all but rank 0, which alone writes checkpoints.

        All workers ask, so that what learning raised stops all of them.
        """

        def ask() -> dict[str, Any]:
            self._await_learning()  # or this worker's last share could arrive after the question
            return self._get(self._actor.state.remote(self._attempt, self._group.rank))

        return self._together(ask)

    def _begun(self, state: Mapping[str, Any] | None) -> int:
        """Begins an attempt and gives its number: the time, so that a group that was replaced has an older one."""
        give_up = time.monotonic() + self._timeout_s
        while True:
            attempt = time.time_ns()
            try:
                self._get(self._actor.begin.remote(attempt, self._group.size, state))
            except TeacherLostError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(RETRY_S)
            else:
                return attempt

    def _together(self, ask: Callable[[], Answer]) -> Answer:
        answer = lost = None
        try:
            answer = ask()
        except TeacherLostError as error:
            lost = error
        is_lost = torch.tensor([float(lost is not None)], device=_collective_device())
        if self._group.sum(is_lost).item() > 0:
            raise lost or TeacherLostError("the teacher did not answer all workers")
        assert answer is not None
        return answer

    def _await_learning(self) -> None:
        """Waits until the actor has heard the latest `learn`: as a rule it did long ago, during the unroll."""
        if self._learning is not None:
            self._get(self._learning)
            self._learning = None

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except RayActorError:
            raise TeacherLostError("the teacher died") from None
        except RayTaskError as error:
            cause = error.cause  # the teacher's own exception, without Ray's wrapping
            if isinstance(cause, StaleAttemptError) and not cause.is_replaced:
                raise TeacherLostError("the teacher came back without its memory") from None
            raise cause from None
        except GetTimeoutError:
            raise self._overdue() from None

    def _overdue(self) -> Exception:
        """Who kept the answer from coming: other workers, or the teacher itself, which is then made to restart."""
        waited = f"within ray.timeout_s={self._timeout_s:g} s"
        try:
            absent = ray.get(self._actor.absent.remote(), timeout=min(self._timeout_s, ALIVE_S))
        except (GetTimeoutError, RayActorError):
            if self._group.rank == 0:
                ray.kill(self._actor, no_restart=False)
            return TeacherLostError(f"the teacher did not answer {waited}")
        names = ", ".join(map(str, absent)) or "?"
        return TimeoutError(f"worker {names} sent nothing to the teacher {waited}, as if it hangs")

    @staticmethod
    def _received(answer: tuple[int, Any, Metrics]) -> LossParams:
        version, phi, observed = answer
        return LossParams(
            version, torch.tensor(phi), observed
        )  # a copy: what came is a read-only view of shared memory


def _collective_device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
