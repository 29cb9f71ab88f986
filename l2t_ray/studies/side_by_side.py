"""The trials of a comparison as Ray tasks: as many at a time as the cluster has processors for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from l2t_ray.config import RayConfig
from l2t_ray.distributed.board import Board
from l2t_ray.distributed.launch import POLL_S, ray_session
from l2t_ray.interfaces import UserError
from l2t_ray.studies.comparison import OnRows, TrackingSpec, Trial, run_trial

POST_EVERY = 10
"""Rounds that a trial collects before it sends them."""


def train_side_by_side(
    pending: Sequence[Trial],
    spec: TrackingSpec,
    settings: RayConfig,
    on_rows: OnRows,
    on_end: Callable[[Trial, str], None],
) -> dict[str, str]:
    """Trains the trials; what stopped some of them, by name.

    Each is a task in a process of its own, which Ray starts again, and which then goes on from its checkpoint, up to
    `ray.max_failures` times when its process or machine dies. Machines must share the run directory.

    Raises:
        UserError: a trial's; the others are stopped.
    """
    import ray
    from ray.exceptions import RayError

    with ray_session(pending[0].config.model_copy(update={"ray": settings})):
        board = ray.remote(Board).options(num_cpus=0).remote()
        # One task a process: memory that a trial leaves behind would count as its successor's.
        train = ray.remote(
            num_cpus=settings.cpus_per_worker,
            num_gpus=1 if settings.use_gpu else 0,
            max_calls=1,
            max_retries=settings.max_failures,
        )(_train)
        running = {train.remote(trial, spec, board): trial for trial in pending}
        failures = {}
        while running:
            ended, _ = ray.wait(list(running), timeout=POLL_S)
            rows, _ = ray.get(board.take.remote(is_stopping=False))
            on_rows(rows)
            for reference in ended:
                trial = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except RayError as error:
                    failures[trial.name] = str(error).strip().splitlines()[-1]
                    continue
                if outcome["is_user_error"]:
                    for other in running:
                        ray.cancel(other)
                    raise UserError(outcome["message"])
                on_end(trial, outcome["message"])
        return failures


def _train(trial: Trial, spec: TrackingSpec, board: Any) -> dict[str, Any]:
    waiting: list[Mapping[str, Any]] = []

    def on_rows(rows: Sequence[Mapping[str, Any]]) -> None:
        waiting.extend(rows)
        if len(waiting) >= POST_EVERY:
            board.post.remote(list(waiting))
            waiting.clear()

    try:
        return {"message": run_trial(trial, spec, on_rows), "is_user_error": False}
    except UserError as error:
        return {"message": str(error), "is_user_error": True}
    finally:
        board.post.remote(waiting)
