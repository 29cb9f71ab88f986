"""Ways to break a run from inside the process that is to die, each at a chosen point and once only.

Ray starts this code in its own processes; `register` makes it travel there by value, for they cannot import it.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

import psutil


def register() -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Blow:
    """A signal that a process sends itself in one round.

    Attributes:
        mark: a file that is made first, so that the round when redone goes well.
        takes_machine: the (simulated) machine dies as well: its raylet, and all processes that it had started.
    """

    mark: Path
    round: int
    signal: Signals = SIGKILL
    takes_machine: bool = False

    def strike(self, round_index: int) -> None:
        if round_index != self.round or self.mark.exists():
            return
        self.mark.touch()
        if self.takes_machine:
            raylet = psutil.Process().parent()
            assert raylet is not None and raylet.name() == "raylet", raylet
            for process in [raylet, *raylet.children(recursive=True)]:
                if process.pid != os.getpid():
                    process.kill()
        os.kill(os.getpid(), self.signal)


def teacher_struck(blow: Blow) -> Callable[..., Any]:
    """Makes a teacher that is hit when it has computed new weights, and before anybody is told."""

    def make(*arguments: Any, **options: Any) -> Any:
        from l2t_ray.assembly.run import first_teacher

        teacher = first_teacher(*arguments, **options)
        propose = teacher.propose

        def struck_propose(version: int, *rest: Any) -> Any:
            answer = propose(version, *rest)
            blow.strike(version)
            return answer

        teacher.propose = struck_propose
        return teacher

    return make


def worker_struck(blow: Blow, *, rank: int) -> Callable[[Mapping[str, Any]], Any]:
    """A worker that is hit in the middle of an unroll, at the second of its sums."""

    def train(arguments: Mapping[str, Any]) -> Any:
        from l2t_ray.core.meta_step import L2TDLN
        from l2t_ray.distributed.worker import train_worker
        from l2t_ray.parallel.group import ProcessGroup

        whole_round, whole_sum = L2TDLN.round, ProcessGroup.sum
        at = {"round": -1, "sum": 0}

        def counted_round(method: L2TDLN, state: Any, batches: Any, index: int) -> Any:
            at.update(round=index, sum=0)
            return whole_round(method, state, batches, index)

        def counted_sum(group: ProcessGroup, tensor: Any) -> Any:
            at["sum"] += 1
            if group.rank == rank and at["sum"] == 2:
                blow.strike(at["round"])
            return whole_sum(group, tensor)

        L2TDLN.round, ProcessGroup.sum = counted_round, counted_sum
        return train_worker(arguments)

    return train
