"""Starts a run on Ray: the teacher actor, the workers of a `TorchTrainer`, and a line back to the screen."""

import hashlib
import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from l2t_ray.assembly.images import open_dataset
from l2t_ray.assembly.run import first_teacher
from l2t_ray.interfaces import FailureLimitError, StoppedError, UserError
from l2t_ray.settings.experiment import ExperimentConfig, RayConfig
from l2t_ray.stopping import StopRequest

OnRows = Callable[[list[Mapping[str, Any]]], None]
POLL_S = 0.5
NAME_WAIT_S = 20.0
KNOCK_S = 10.0
NAMESPACE = "l2t_ray"

# Set before Ray starts, each only where the user has not. Sources: Ray 2.60's own documentation and source.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the default 2 s is how long every report would wait
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every worker line twice otherwise
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process and one error line less; preemption is a node loss here
    "RAY_worker_niceness": "0",  # the default 15 starves training wherever the machine has other work
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # the default 60 s gives up on a busy machine, and begins again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences a warning
}

LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch between a cluster and this machine alone, on Linux too
    "GLOO_SOCKET_IFNAME": "lo",
}
"""For a Ray of our own: by default it listens on every interface. Ray reads the first one when it is imported."""


def launch(config: ExperimentConfig, run_dir: Path, *, on_rows: OnRows, stop: StopRequest | None = None) -> str:
    """Trains the experiment on Ray, to its end. What it learned is in the checkpoint whose name this returns.

    Joins the cluster of RAY_ADDRESS (a submitted job has it set), or starts one on this machine.

    Raises:
        UserError, StoppedError: as a run in this process would.
        FailureLimitError: if workers died more often than `ray.max_failures`.
    """
    if config.ray.min_workers is not None:  # how long it waits for machines that may be gone, before it takes fewer
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    environment = ENVIRONMENT if os.environ.get("RAY_ADDRESS") else ENVIRONMENT | LOOPBACK
    for key, value in environment.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(config.ray.timeout_s))
    with ray_session(config):
        if stop is not None:
            stop.listen()  # again: ray.init has put its own handler in place
        outcome = _train(config, run_dir.resolve(), on_rows, stop)
    if outcome["outcome"] == "user_error":
        raise UserError(outcome["message"])
    if outcome["outcome"] == "stopped":
        raise StoppedError(outcome["message"])
    return outcome["checkpoint"]


@contextmanager
def ray_session(config: ExperimentConfig) -> Iterator[None]:
    """Ray, joined or started; a Ray that was running before is left running.

    Raises:
        UserError: if the cluster cannot be reached, or this machine lacks the GPUs that are asked for.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _knock(address)
            ray.init(address=address, logging_level=logging.WARNING)
        except (OSError, ValueError) as error:
            raise UserError(
                f"RAY_ADDRESS={address}, but no Ray cluster can be joined there ({_first_line(error)}); set it to one "
                "that runs (and RAY_AUTH_MODE as that one has it), or unset it to start Ray on this machine."
            ) from None
    else:
        # A cluster of our own on loopback needs no token, and one that is asked for must be asked for on both sides.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        wanted = config.ray.num_workers * config.ray.cpus_per_worker
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, -int(-wanted // 1)),
            # Nine more processes, which start together and on a small machine make Ray miss its own 30 s. Whoever wants
            # to look into Ray starts one that stays (`ray start --head`) and sets RAY_ADDRESS.
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        if not address and config.ray.use_gpu and num_gpus < (config.ray.min_workers or config.ray.num_workers):
            raise UserError(
                f"ray.use_gpu=true with ray.num_workers={config.ray.num_workers}, but this machine has {num_gpus} "
                "GPUs; set ray.use_gpu=false, fewer workers, or RAY_ADDRESS to a cluster that has them."
            )
        yield
    finally:
        ray.shutdown()


def _train(config: ExperimentConfig, run_dir: Path, on_rows: OnRows, stop: StopRequest | None) -> dict[str, str]:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from l2t_ray.distributed.board import Board
    from l2t_ray.distributed.lean_trainer import LeanTrainer
    from l2t_ray.distributed.restarts import NoteRestarts, describe
    from l2t_ray.distributed.teacher_actor import TeacherService
    from l2t_ray.distributed.worker import WorkerSpec, train_worker

    method = config.method
    settings = config.ray
    central: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": _central_node(settings)}
    board = _board(run_dir, ray.remote(Board).options(**_named("board", run_dir), **central))
    # A teacher that dies comes back empty and refuses the attempt it had served: the workers begin another one from the
    # checkpoint. Its calls are never retried: a hypergradient must not be applied twice.
    teacher = None
    if method.has_teacher:
        teacher = (
            ray.remote(TeacherService)
            .options(**_named("teacher", run_dir), **central, max_task_retries=0)
            .remote(partial(first_teacher, config, open_dataset(config.data).num_classes))
        )
    trainer = LeanTrainer(
        train_worker,
        train_loop_config={"spec": WorkerSpec(config, run_dir, teacher, board)},
        torch_config=TorchConfig(timeout_s=int(settings.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers
            if settings.min_workers is None
            else (settings.min_workers, settings.num_workers),
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_dir),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=3),
            logging_config=LoggingConfig(log_level="ERROR"),  # below that, nothing but Ray's own retries
            callbacks=[NoteRestarts(board, settings.max_failures)],
        ),
    )
    with _relayed(board, on_rows, stop):
        try:
            result = _in_a_thread(trainer.fit)
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            raise FailureLimitError(
                f"training failed more than ray.max_failures={settings.max_failures} times, at last by "
                f"{describe(failures) if failures else error}; go on from the last checkpoint with --resume {run_dir}."
            ) from error
        except RayError as error:
            if (absent := absent_module(error)) is not None:
                raise UserError(absent) from error
            raise
    assert result.return_value is not None  # every worker says how it ended
    return result.return_value


def absent_module(error: Exception) -> str | None:
    """What to do about a module of the user's own that a machine of the cluster lacks; None: none is."""
    found = re.search(r"'[\w.]+:[\w.]+' cannot be imported \([^\n]*?\)", str(error))
    if found is None:
        return None
    return (
        f"on a machine of the cluster {found[0]}; submit the job with its directory (ray job submit --working-dir), or "
        "put the module on every machine's PYTHONPATH."
    )


def _board(run_dir: Path, make: Any) -> Any:
    """The board of this run. After a driver that was killed, Ray needs a moment to end its actors."""
    give_up = time.monotonic() + NAME_WAIT_S
    while True:
        try:
            return make.remote()
        except ValueError as error:  # the name is taken
            if time.monotonic() > give_up:
                raise UserError(
                    f"{run_dir} is in training on this cluster already; wait for that run to end, or set another name=."
                ) from error
            time.sleep(POLL_S)


def _central_node(settings: RayConfig) -> Any:
    """Where teacher and board should live: with the driver, or else on another machine without a GPU.

    A wish, not a condition: when that machine is lost, they come back elsewhere.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not settings.teacher_on_gpu_node:
        nodes = [node for node in nodes if not node["Resources"].get("GPU")] or nodes
    nodes.sort(key=lambda node: (node["NodeID"] != own, node["NodeID"]))
    return NodeAffinitySchedulingStrategy(nodes[0]["NodeID"], soft=True)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at `host:port`. Ray itself would go on trying for minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _named(kind: str, run_dir: Path) -> dict[str, str]:
    """A name that only another run in the very same directory can have."""
    return {
        "name": f"{kind}-{run_dir.name}-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:8]}",
        "namespace": NAMESPACE,
    }


def _in_a_thread(work: Callable[[], Any]) -> Any:
    """The work's result. In the main thread Ray Train would take Ctrl-C for itself, and abort."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


@contextmanager
def _relayed(board: Any, on_rows: OnRows, stop: StopRequest | None) -> Iterator[None]:
    """Brings rows from the board to `on_rows`, and the wish to stop to the board, while the body runs."""
    import ray
    from ray.exceptions import RayError

    is_over = threading.Event()

    def take() -> None:
        try:
            rows, notes = ray.get(board.take.remote(stop is not None and stop.is_asked()))
        except RayError:  # a lost board costs the screen a few lines: the rows are in the checkpoints
            return
        for note in notes:
            warnings.warn(note, stacklevel=1)
        on_rows(rows)

    def relay() -> None:
        while not is_over.wait(POLL_S):
            take()

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        take()
