"""What every Ray Train worker runs: its replica of the student, its slice of each batch, its line to the teacher."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from l2t_ray.config import ExperimentConfig
from l2t_ray.core.group import ProcessGroup
from l2t_ray.distributed.remote_teacher import RemoteTeacher
from l2t_ray.experiment import build_run
from l2t_ray.interfaces import DivergenceError, UserError
from l2t_ray.training.checkpoint import CheckpointStore

POST_EVERY_S = 0.5


class Board:
    """The actor where rank 0 posts finished rounds, and the driver reads them for screen and tracking."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] = []

    def post(self, rows: list[Mapping[str, Any]]) -> None:
        self._rows.extend(rows)

    def take(self) -> list[Mapping[str, Any]]:
        rows, self._rows = self._rows, []
        return rows


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker needs to know, sent once."""

    config: ExperimentConfig
    run_dir: Path
    teacher: Any  # handle of the `TeacherService` actor; None where no method has a teacher
    board: Any  # handle of the `Board` actor


class Poster:
    """Sends finished rounds to the board every half second, without waiting for it."""

    def __init__(self, board: Any):
        self._board, self._sent_at = board, 0.0
        self._rows: list[Mapping[str, Any]] = []

    def post(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if time.monotonic() - self._sent_at >= POST_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._board.post.remote(self._rows)
        self._rows, self._sent_at = [], time.monotonic()


def train_worker(arguments: Mapping[str, WorkerSpec]) -> dict[str, str]:
    """Trains to the end from the newest checkpoint. Says how it ended; only faults of machines raise."""
    spec = arguments["spec"]
    config = spec.config
    rank = ray.train.get_context().get_world_rank()
    attempt = str(broadcast_from_rank_zero(secrets.token_hex(4) if rank == 0 else None))
    group = ProcessGroup()
    store = CheckpointStore(
        spec.run_dir / "checkpoints", keep=config.training.keep_checkpoints, config=config.to_yaml()
    )
    device = torch.device("cuda", torch.cuda.current_device()) if config.ray.use_gpu else torch.device("cpu")
    poster = Poster(spec.board)
    try:
        run = build_run(
            config,
            group=group,
            device=device,
            make_teacher=lambda *_: RemoteTeacher(spec.teacher, attempt, group, timeout_s=config.ray.timeout_s),
        )
        run.train(start=store.latest(), store=store, on_row=poster.post)
    except UserError as error:
        return {"outcome": "user_error", "message": str(error)}
    except DivergenceError as error:
        return {"outcome": "diverged", "message": str(error)}
    finally:
        poster.flush()
    return {"outcome": "finished", "message": ""}
