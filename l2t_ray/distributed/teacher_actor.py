"""The central teacher: one actor a run, holding the loss network and the LSTM.

It collects every worker's share of a hypergradient, moves the loss network once all have come, and answers all with
the same new weights. Learning of the LSTM happens after the answer, while the workers unroll.

Every call names the *attempt* it belongs to, a number that rank 0 draws whenever a group of workers begins from a
checkpoint. Younger attempts have larger numbers, and end the older ones: the calls of a group that was replaced are
refused, never mixed in. A teacher that died comes back without an attempt, and refuses every call until one begins.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2t_ray.core.teacher import LocalTeacher, StaleVersionError
from l2t_ray.interfaces import LossParams, Metrics

WorkerShare = tuple[float, np.ndarray]  # (error, hypergradient) of one worker


class StaleAttemptError(RuntimeError):
    """A call of another attempt than the current one.

    Attributes:
        is_replaced: whether a younger attempt is served. If not, the teacher has lost its memory.
    """

    def __init__(self, attempt: int, current: int | None):
        super().__init__(attempt, current)  # the arguments as they are: the exception travels as a pickle
        self.attempt, self.current = attempt, current

    @property
    def is_replaced(self) -> bool:
        return self.current is not None and self.current >= self.attempt

    def __str__(self) -> str:
        return f"attempt {self.attempt} is not served; the current one is {self.current}"


class TeacherService:
    """What the actor runs, as a plain asyncio class: no Ray in it.

    Args:
        make_teacher: gives a new teacher at its beginning; called once.
    """

    def __init__(self, make_teacher: Callable[[], LocalTeacher]):
        self._teacher = make_teacher()
        self._beginning = self._teacher.state_dict()
        self._attempt: int | None = None
        self._num_workers = 0
        self._shares: dict[tuple[str, int], dict[int, WorkerShare]] = {}
        self._answers: dict[int, LossParams | Exception] = {}
        self._learned = -1  # the latest version whose outcome is known in this attempt
        self._failure: Exception | None = None  # of learning, which nobody waits for: the next call hears of it
        self._changed = asyncio.Condition()

    async def begin(self, attempt: int, num_workers: int, state: Mapping[str, Any] | None) -> None:
        """Starts an attempt from a checkpoint's state, or from the beginning; every earlier attempt ends here.

        Raises:
            StaleAttemptError: if this attempt or a younger one has begun already.
        """
        async with self._changed:
            if self._attempt is not None and attempt <= self._attempt:
                raise StaleAttemptError(attempt, self._attempt)
            self._attempt, self._num_workers = attempt, num_workers
            self._shares, self._answers = {}, {}
            self._learned, self._failure = -1, None
            self._teacher.begin(self._beginning if state is None else state)
            self._changed.notify_all()

    async def read(self, attempt: int) -> tuple[int, np.ndarray, Metrics]:
        self._check(attempt)
        return _plain(self._teacher.read())

    async def propose(
        self, attempt: int, rank: int, version: int, error: float, gradient: np.ndarray
    ) -> tuple[int, np.ndarray, Metrics]:
        """Waits for the shares of all workers, then answers each with the same new weights.

        A share that comes twice counts once; the sum runs in order of rank, so that it is the same in every run.

        Raises:
            StaleAttemptError: if another attempt has begun, before or while waiting.
            StaleVersionError: if the share was taken at weights that are no longer current.
            DivergenceError: if the summed error or hypergradient is not finite, or learning before was not.
        """
        async with self._changed:
            self._check(attempt)
            if version not in self._answers:
                current = self._teacher.read().version
                if version != current:
                    raise StaleVersionError(
                        f"worker {rank} sent a hypergradient of loss version {version}, the current one is {current}."
                    )
                total = self._gather("propose", version, rank, (error, gradient))
                if total is not None:
                    self._answers = {version: self._answer(version, *total)}
                    self._changed.notify_all()
            await self._changed.wait_for(lambda: self._attempt != attempt or version in self._answers)
            self._check(attempt)
            self._check_learning()
            answer = self._answers[version]
        if isinstance(answer, Exception):
            raise answer
        return _plain(answer)

    async def learn(self, attempt: int, rank: int, version: int, gradient: np.ndarray | None) -> None:
        """As `Teacher.learn`. Without a gradient (the one given to `propose` is meant) rank 0 speaks for all."""
        async with self._changed:
            self._check(attempt)
            if version <= self._learned:
                return  # a share that came twice
            total = None if gradient is None else self._gather("learn", version, rank, (0.0, gradient))
            if gradient is not None and total is None:
                return
            try:
                self._teacher.learn(version, None if total is None else total[1])
            except Exception as failure:  # all workers must hear of it, not only the last to come
                self._failure = failure
            self._learned = version
            self._changed.notify_all()

    async def state(self, attempt: int, rank: int) -> dict[str, Any]:
        """The teacher's state, once everything sent to `learn` has been learned. Only rank 0 is given its content."""
        async with self._changed:
            self._check(attempt)
            await self._changed.wait_for(lambda: self._attempt != attempt or not self._shares)
            self._check(attempt)
            self._check_learning()
            return self._teacher.state_dict() if rank == 0 else {}

    async def absent(self) -> list[int]:
        """Workers whose shares others are waiting for."""
        came = set().union(*self._shares.values())
        return [rank for rank in range(self._num_workers) if rank not in came] if self._shares else []

    def _check(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise StaleAttemptError(attempt, self._attempt)

    def _check_learning(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _gather(self, kind: str, version: int, rank: int, share: WorkerShare) -> tuple[float, Tensor] | None:
        """Keeps a share; the sum when it was the last one missing."""
        shares = self._shares.setdefault((kind, version), {})
        shares[rank] = share
        if len(shares) < self._num_workers:
            return None
        del self._shares[(kind, version)]
        ordered = [shares[r] for r in sorted(shares)]
        total = torch.tensor(ordered[0][1])  # a copy: what came is a read-only view of shared memory
        for _, gradient in ordered[1:]:
            total += torch.tensor(gradient)
        return sum(error for error, _ in ordered), total

    def _answer(self, version: int, error: float, gradient: Tensor) -> LossParams | Exception:
        try:
            return self._teacher.propose(version, gradient, error)
        except Exception as failure:  # every waiting worker must hear of it, not only the last to come
            return failure


def _plain(params: LossParams) -> tuple[int, np.ndarray, Metrics]:
    return params.version, params.phi.numpy(), params.observed
