"""The central teacher: one actor a run, holding the loss network and the LSTM.

It collects every worker's share of a hypergradient, moves the loss network once all have come, and answers all with
the same new weights. Learning of the LSTM happens after the answer, while the workers unroll.

Every call names the *attempt* it belongs to, a number that rank 0 draws when a group of workers starts. After a
restart the calls of the old group are refused, never mixed in.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2t_ray.core.teacher import LocalTeacher, StaleVersionError
from l2t_ray.interfaces import LossParams

Share = tuple[float, np.ndarray]  # (error, hypergradient) of one worker


class StaleAttemptError(RuntimeError):
    """A call from a group of workers that has been replaced."""


class TeacherService:
    """What the actor runs, as a plain asyncio class: no Ray in it.

    Args:
        make_teacher: gives a new teacher at its beginning; called at the start of every attempt.
    """

    def __init__(self, make_teacher: Callable[[], LocalTeacher]):
        self._make_teacher = make_teacher
        self._teacher = make_teacher()
        self._attempt: str | None = None
        self._num_workers = 0
        self._shares: dict[tuple[str, int], dict[int, Share]] = {}
        self._answers: dict[int, LossParams | Exception] = {}
        self._changed = asyncio.Condition()

    async def begin(self, attempt: str, num_workers: int, state: Mapping[str, Any] | None) -> None:
        """Starts an attempt from a checkpoint's state, or from the beginning; every earlier attempt ends here."""
        async with self._changed:
            self._attempt, self._num_workers = attempt, num_workers
            self._shares, self._answers = {}, {}
            self._teacher = self._make_teacher()
            self._teacher.begin(state)
            self._changed.notify_all()

    async def read(self, attempt: str) -> tuple[int, np.ndarray]:
        self._check(attempt)
        return _plain(self._teacher.read())

    async def propose(
        self, attempt: str, rank: int, version: int, error: float, gradient: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """Waits for the shares of all workers, then answers each with the same new weights.

        A share that comes twice counts once; the sum runs in order of rank, so that it is the same in every run.

        Raises:
            StaleAttemptError: if another attempt has begun, before or while waiting.
            StaleVersionError: if the share was taken at weights that are no longer current.
            DivergenceError: if the summed error or hypergradient is not finite.
        """
        self._check(attempt)
        async with self._changed:
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
            answer = self._answers[version]
        if isinstance(answer, Exception):
            raise answer
        return _plain(answer)

    async def learn(self, attempt: str, rank: int, version: int, gradient: np.ndarray | None) -> None:
        """As `Teacher.learn`. Without a gradient (the one given to `propose` is meant) rank 0 speaks for all."""
        self._check(attempt)
        async with self._changed:
            if gradient is None:
                self._teacher.learn(version)
                return
            total = self._gather("learn", version, rank, (0.0, gradient))
            if total is not None:
                self._teacher.learn(version, total[1])
                self._changed.notify_all()

    async def state(self, attempt: str) -> dict[str, Any]:
        """The teacher's state, once everything sent to `learn` has been learned."""
        self._check(attempt)
        async with self._changed:
            await self._changed.wait_for(lambda: self._attempt != attempt or not self._shares)
            self._check(attempt)
            return self._teacher.state_dict()

    def _check(self, attempt: str) -> None:
        if attempt != self._attempt:
            raise StaleAttemptError(f"attempt {attempt} is over; the current one is {self._attempt}.")

    def _gather(self, kind: str, version: int, rank: int, share: Share) -> tuple[float, Tensor] | None:
        """Keeps a share; the sum when it was the last one missing."""
        shares = self._shares.setdefault((kind, version), {})
        shares[rank] = share
        if len(shares) < self._num_workers:
            return None
        del self._shares[(kind, version)]
        ordered = [shares[r] for r in sorted(shares)]
        total = torch.zeros(ordered[0][1].shape, dtype=torch.from_numpy(ordered[0][1].copy()).dtype)
        for _, gradient in ordered:
            total += torch.from_numpy(np.array(gradient))
        return sum(error for error, _ in ordered), total

    def _answer(self, version: int, error: float, gradient: Tensor) -> LossParams | Exception:
        try:
            return self._teacher.propose(version, gradient, error)
        except Exception as failure:  # every waiting worker must hear of it, not only the last to come
            return failure


def _plain(params: LossParams) -> tuple[int, np.ndarray]:
    return params.version, params.phi.numpy()
