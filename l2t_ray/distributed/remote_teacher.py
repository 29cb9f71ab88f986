"""The teacher as a worker sees it: the same protocol, with the actor at the other end."""

from collections.abc import Mapping
from typing import Any

import ray
import torch
from jaxtyping import Float
from ray.exceptions import GetTimeoutError, RayTaskError
from torch import Tensor

from l2t_ray.core.timing import part
from l2t_ray.interfaces import Group, LossParams


class RemoteTeacher:
    """Speaks to the teacher actor for one worker of one attempt.

    Args:
        actor: a `TeacherService`.
        attempt: drawn by rank 0, the same on all workers of the group.
        timeout_s: longest wait for an answer; the actor waits for the slowest worker before it answers.
    """

    def __init__(self, actor: Any, attempt: str, group: Group, *, timeout_s: float):
        self._actor, self._attempt, self._group, self._timeout_s = actor, attempt, group, timeout_s
        self._params: LossParams | None = None
        self._learning: ray.ObjectRef | None = None

    def begin(self, state: Mapping[str, Any] | None) -> None:
        if self._group.rank == 0:
            self._get(self._actor.begin.remote(self._attempt, self._group.size, state))
        self._group.sum(torch.zeros(1, device=_collective_device()))  # nobody may speak before rank 0 has begun
        self._params = self._received(self._get(self._actor.read.remote(self._attempt)))

    def read(self) -> LossParams:
        assert self._params is not None, "begin() comes first"
        return self._params

    @part("teacher")
    def propose(self, version: int, hypergradient: Float[Tensor, " m"], error: float) -> LossParams:
        self._await_learning()
        share = hypergradient.detach().cpu().numpy()
        answer = self._actor.propose.remote(self._attempt, self._group.rank, version, error, share)
        self._params = self._received(self._get(answer))
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
        self._await_learning()  # or this worker's last share could arrive after the question
        return self._get(self._actor.state.remote(self._attempt, self._group.rank))

    def _await_learning(self) -> None:
        """Waits until the actor has heard the latest `learn`: as a rule it did long ago, during the unroll."""
        if self._learning is not None:
            self._get(self._learning)
            self._learning = None

    def _get(self, reference: ray.ObjectRef) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except RayTaskError as error:
            raise error.cause from None  # the teacher's own exception, without Ray's wrapping
        except GetTimeoutError:
            raise TimeoutError(
                f"worker {self._group.rank} got no answer from the teacher within ray.timeout_s={self._timeout_s:g} s; "
                "a worker hangs or the teacher is gone."
            ) from None

    @staticmethod
    def _received(answer: tuple[int, Any]) -> LossParams:
        version, phi = answer
        return LossParams(version, torch.tensor(phi))  # a copy: what came is a read-only view of shared memory


def _collective_device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
