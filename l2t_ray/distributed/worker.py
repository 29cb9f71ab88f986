"""What every Ray Train worker runs: its replica of the student, its slice of each batch, its line to the teacher."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayError

from l2t_ray.assembly.run import build_run, build_store
from l2t_ray.assembly.tasks import headline_for
from l2t_ray.bilevel.heap import keep_freed_memory
from l2t_ray.distributed.gauges import Gauges
from l2t_ray.distributed.remote_teacher import RemoteTeacher, TeacherLostError
from l2t_ray.interfaces import StoppedError, UserError
from l2t_ray.parallel.group import ProcessGroup
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore
from l2t_ray.training.loop import Run

POST_EVERY_S = 0.5
LAST_POST_S = 10
ANSWER_S = 1.0
SIGN_S = 3.0
"""How long the other workers have to say that they are alive, after a sum that failed."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker needs to know, sent once."""

    config: ExperimentConfig
    run_dir: Path
    teacher: Any  # handle of the `TeacherService` actor; None where no method has a teacher
    board: Any  # handle of the `Board` actor


class Poster:
    """Sends finished rounds to the board every half second, without waiting for it, and shows the latest on gauges."""

    def __init__(self, board: Any, gauges: Gauges):
        self._board, self._gauges, self._sent_at = board, gauges, 0.0
        self._rows: list[Mapping[str, Any]] = []
        self._unheard: ray.ObjectRef | None = None  # the latest answer that nobody has asked for

    def post(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self._gauges.show(row)
        if time.monotonic() - self._sent_at >= POST_EVERY_S:
            self._unheard = self._send()

    def should_stop(self) -> bool:
        """What the board answered to the latest rows. No more than one short wait every half second."""
        answer, self._unheard = self._unheard, None
        try:
            return answer is not None and ray.get(answer, timeout=ANSWER_S)
        except RayError:  # a lost board comes back, and the driver asks again
            return False

    def close(self) -> None:
        """Sends what is left and waits until it is there: this process ends before the driver reads the board."""
        ray.wait([self._send()], timeout=LAST_POST_S)

    def _send(self) -> ray.ObjectRef:
        sent = self._board.post.remote(self._rows)
        self._rows, self._sent_at = [], time.monotonic()
        return sent


def train_worker(arguments: Mapping[str, WorkerSpec]) -> dict[str, str]:
    """Trains to the end from the newest checkpoint. Says how it ended; only faults of machines raise."""
    # Ray Train tells of every report, by a logger that is named after a file and can only be met at the root.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("l2t_ray").setLevel(logging.INFO)
    keep_freed_memory()
    spec = arguments["spec"]
    if ray.train.get_context().get_world_rank() == 0:
        warnings.showwarning = lambda message, *_, **__: spec.board.note.remote(str(message))
    poster = Poster(spec.board, Gauges(spec.run_dir.name, headline_for(spec.config)))
    try:
        last = _train(spec, poster)
    except UserError as error:
        return {"outcome": "user_error", "message": str(error)}
    except StoppedError as stopped:
        return {"outcome": "stopped", "message": str(stopped)}
    finally:
        poster.close()
    return {"outcome": "finished", "checkpoint": last.name}


def _train(spec: WorkerSpec, poster: Poster) -> Checkpoint:
    """The last checkpoint, after training from the newest checkpoint to the end.

    A lost teacher costs the rounds since the last checkpoint, and no worker.

    Raises:
        TeacherLostError: if it was lost more than `ray.max_failures` times without a checkpoint between.
        TimeoutError: if another worker hangs.
    """
    max_failures = spec.config.ray.max_failures
    group = ProcessGroup(timeout_s=spec.config.ray.timeout_s, find_silent=partial(_find_silent, spec.board))
    store = build_store(spec.config, spec.run_dir)
    run = _agreed(lambda: _build(spec, group), group)
    start = _newest(store, spec, group)
    report, num_losses = Reporter(), 0
    while True:
        try:
            return run.train(
                start=start, store=store, on_row=poster.post, on_checkpoint=report, should_stop=poster.should_stop
            )
        except TeacherLostError as error:
            before, start = start, _newest(store, spec, group)
            num_losses = num_losses + 1 if _place(start) == _place(before) else 1
            if num_losses > max_failures:
                raise
            if group.rank == 0:
                spec.board.note.remote(
                    f"{error}; it is restarted, going on from the last checkpoint "
                    f"(loss {num_losses} of ray.max_failures={max_failures} since then)"
                )


def _find_silent(board: Any, rank: int, num_workers: int) -> list[int]:
    """The workers that do not tell the board, as this one does, that they waited in vain."""
    give_up = time.monotonic() + SIGN_S
    try:
        board.waited.remote(rank)
        while (silent := ray.get(board.silent.remote(num_workers), timeout=ANSWER_S)) and time.monotonic() < give_up:
            time.sleep(0.1)
        return silent
    except RayError:  # no board, no names
        return []


def _build(spec: WorkerSpec, group: ProcessGroup) -> Run:
    config = spec.config
    return build_run(
        config,
        group=group,
        device=torch.device("cuda", torch.cuda.current_device()) if config.ray.use_gpu else torch.device("cpu"),
        make_teacher=lambda *_: RemoteTeacher(spec.teacher, group, timeout_s=config.ray.timeout_s),
        run_dir=spec.run_dir,
    )


def _newest(store: CheckpointStore, spec: WorkerSpec, group: ProcessGroup) -> Checkpoint | None:
    """The checkpoint to start from.

    Raises:
        UserError: on all workers, if one of them cannot read it, or if they do not see the same one.
    """
    newest = _agreed(store.latest, group)
    seen = _gathered(_place(newest), group)
    if len(set(seen)) > 1 and spec.config.storage:  # one machine has what was not copied there before the run ended
        share = newest is not None and seen.index(max(place for place in seen if place)) == group.rank
        _agreed(lambda: store.share(newest) if newest is not None and share else None, group)
        newest = _agreed(store.latest, group)
        seen = _gathered(_place(newest), group)
    if len(set(seen)) > 1:
        raise UserError(
            f"the workers do not see the same checkpoints in {spec.run_dir}; "
            "set runs=DIR to a directory that all machines share, or storage=URI."
        )
    return newest


def _place(checkpoint: Checkpoint | None) -> tuple[int, int, str, int] | None:
    """Of a checkpoint among all of its run: the later, the larger."""
    return checkpoint and (len(checkpoint.rows), len(checkpoint.diverged), checkpoint.arm, checkpoint.round)


def _gathered(value: Any, group: ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * group.size
    dist.all_gather_object(values, value)
    return values


def _agreed(make: Callable[[], Made], group: ProcessGroup) -> Made:
    """What `make` gives. A user's mistake that one worker meets is raised by all: nobody waits for one that stopped."""
    made, problem = None, None
    try:
        made = make()
    except UserError as error:
        problem = str(error)
    for found in _gathered(problem, group):
        if found is not None:
            raise UserError(found)
    return cast(Made, made)


class Reporter:
    """Tells Ray Train (and a sweep that waits for it) where the run stands: once a checkpoint, for a report blocks."""

    def __init__(self) -> None:
        self._arm, self._num_rows = "", 0
        self._latest: dict[str, Any] = {}

    def __call__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.arm != self._arm or len(checkpoint.rows) < self._num_rows:
            self._arm, self._num_rows, self._latest = checkpoint.arm, 0, {}
        for row in checkpoint.rows[self._num_rows :]:  # the others were seen before: a long run has many
            if row["arm"] == checkpoint.arm:
                self._latest |= row  # the test set is not measured in every round
        self._num_rows = len(checkpoint.rows)
        ray.train.report(dict(self._latest))
