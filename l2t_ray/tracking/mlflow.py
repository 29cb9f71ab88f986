"""Writes a run to MLflow without ever standing in its way.

The calls that training makes only append to a queue and to a journal, `mlflow_pending.jsonl` in the run directory. One
background thread imports MLflow, opens the run and sends what is queued. The journal holds every row that is not known
to be in the store, and goes away when all are. So a store that is down, slow or gone costs one warning and no time,
and a killed run loses no rows: the next one in the same directory sends what is left.

A row is identified by (arm, round). The run's method has plain names, such as `test_accuracy`, the same in all runs
whatever their methods; a control's are `<arm>/test_accuracy`. `round` is logged with every row and last in it, which
tells a resumed run what the store already has.

Only the driver process uses this: one writer a run, so that no two processes race for one SQLite file.
"""

import json
import logging
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2t_ray.masking import masked
from l2t_ray.tracking.deliveries import Delivery, Files, ModelFile, UsedData
from l2t_ray.tracking.entries import Params, RoundEntry, read_journal
from l2t_ray.tracking.opened_run import WantedRun, opened_run
from l2t_ray.tracking.run_record import recorded_run_id, write_record
from l2t_ray.tracking.runs import logged_rows
from l2t_ray.tracking.stores import absolute_uri, artifact_location, opened_alone

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
else:
    MlflowClient = SystemMetricsMonitor = Any  # importing MLflow takes seconds; the tracker's thread does it

__all__ = ["PENDING", "MlflowTracker", "recorded_run_id"]

PENDING = "mlflow_pending.jsonl"
STATUSES = ("FINISHED", "FAILED", "KILLED")

_MAX_METRICS_PER_CALL = 1000  # limits of MLflow's log_batch
_MAX_PARAMS_PER_CALL = 100
_SEND_EVERY_S = 1.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_ENVIRONMENT = {
    # MLflow would try for minutes (7 retries of up to 120 s). Here the journal does the waiting.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # its schema messages would cut through the progress bars
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_logger = logging.getLogger(__name__)


class MlflowTracker:
    """A `Tracker` that writes one MLflow run. Make one with `start`."""

    def __init__(
        self,
        uri: str,
        *,
        directory: Path,
        artifact_root: Path,
        experiment: str,
        run_name: str,
        run_id: str | None,
        method: str,
        tags: Mapping[str, str],
        system_metrics: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.uri = uri
        self._directory = directory
        self._artifact_root = artifact_root
        self._experiment = experiment
        self._run_name = run_name
        self._run_id = run_id
        self._method = method
        self._tags = tags
        self._system_metrics = system_metrics
        self._warn = warn

        self._lock = threading.Lock()  # guards the queues, the journal and the two flags below
        self._queue: deque[RoundEntry | Params] = deque()
        self._deliveries: deque[Delivery] = deque()  # apart, so that a failing upload never holds up rows
        self._is_down = False
        self._is_journal_lost = False
        self._status: str | None = None
        self._has_run = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)

        # Touched by the background thread alone.
        self._client: MlflowClient | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._known_params: dict[str, str] = {}
        self._logged: set[tuple[str, int]] = set()

    @classmethod
    def start(
        cls,
        *,
        uri: str | None = None,
        directory: Path,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        method: str = "",
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        root: Path | None = None,
        system_metrics: bool = True,
        warn: Callable[[str], None] = _logger.warning,
    ) -> "MlflowTracker":
        """Starts tracking and returns at once; the run appears in MLflow a few seconds later.

        Args:
            uri: tracking URI; None: `MLFLOW_TRACKING_URI`, else an SQLite file `mlflow.db` in `root`.
            directory: the run directory. Rows that an earlier start left in its journal are sent first.
            experiment: name of the MLflow experiment; made when missing.
            run_name: name of the run.
            run_id: the run to go on with after a resume (see `recorded_run_id`); rows it has are not sent again.
            method: the arm that the run is about: names of its metrics have no arm before them.
            parent_run_id: the study that this run is a trial of.
            tags: further tags of the run.
            root: where the default store lives; None: the parent of `directory`.
            system_metrics: also log load and memory of the machine, every ten seconds.
            warn: told, once, that the store cannot be reached, and of changed parameters.
        """
        directory = Path(directory).absolute()
        root = Path(root).absolute() if root else directory.parent
        uri = absolute_uri(uri or os.environ.get("MLFLOW_TRACKING_URI") or "", root)
        all_tags = {key: masked(str(value)) for key, value in (tags or {}).items()}
        if parent_run_id:
            all_tags["mlflow.parentRunId"] = parent_run_id
        tracker = cls(
            uri,
            directory=directory,
            artifact_root=root,
            experiment=experiment,
            run_name=run_name,
            run_id=run_id,
            method=method,
            tags=all_tags,
            system_metrics=system_metrics,
            warn=warn,
        )
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        tracker._queue.extend(read_journal(directory / PENDING))
        tracker._thread.start()
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the store has answered for the first time."""
        return self._run_id

    def wait_for_run_id(self, timeout: float | int = 60) -> str | None:
        """The run id, once there is one: a study needs it before its trials start. None if the store stays away."""
        self._has_run.wait(timeout)
        return self._run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs the configuration; nested mappings become dotted keys. A value changed since an earlier log is kept
        as it was, with a warning, as MLflow's parameters cannot change."""
        with self._lock:
            self._queue.append(Params.of(params))

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs rows of the metrics table, each at its round as `<column>`, of a control as `<arm>/<column>`; None and
        NaN are left out.

        The first of several rows with the same arm and round counts.
        """
        now = int(time.time() * 1000)
        new = [RoundEntry.of(row, now) for row in rows]
        lines = "".join(json.dumps(row._asdict()) + "\n" for row in new)
        with self._lock:
            self._queue.extend(new)
            try:
                with (self._directory / PENDING).open("a") as journal:
                    journal.write(lines)
            except OSError as error:
                if not self._is_journal_lost:
                    self._is_journal_lost = True
                    self._warn(f"rows for MLflow cannot be kept in {self._directory / PENDING}: {error}")

    def log_artifacts(self, *paths: str) -> None:
        """Uploads files, and directories under their own names, some time before `finish` returns."""
        self._deliver(*(Files(str(Path(path).absolute())) for path in paths))

    def log_data(self, data: UsedData) -> None:
        """Names the data set of the run, likewise."""
        self._deliver(data)

    def log_models(self, models: Mapping[str, Path], loader: str) -> None:
        """Lists trained models, by arm, likewise.

        Args:
            loader: the module by which `mlflow.pyfunc` loads such a file.
        """
        self._deliver(*(ModelFile(arm, path.absolute(), loader) for arm, path in models.items()))

    def _deliver(self, *deliveries: Delivery) -> None:
        with self._lock:
            self._deliveries.extend(deliveries)

    def finish(self, status: str = "FINISHED", *, timeout: float | int = 60) -> None:
        """Sends what is queued and closes the run; what cannot be sent stays in the journal. Repeated calls do nothing.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`.
            timeout: longest wait in seconds; a store that refuses is given one last try.
        """
        if self._closing.is_set():
            return
        self._status = status if status in STATUSES else "FAILED"
        self._closing.set()
        self._thread.join(timeout)
        with self._lock:
            num_rows = sum(isinstance(item, RoundEntry) for item in self._queue)
            is_incomplete = bool(self._queue or self._deliveries) or self._is_down or self._thread.is_alive()
        if is_incomplete:
            self._warn(
                f"MLflow at {masked(self.uri)} was not reached at the end: {num_rows} rows stay in "
                f"{self._directory / PENDING} and are sent when the run is resumed."
            )

    def ui_command(self) -> str:
        """The shell command that shows the runs in a browser."""
        shown = shlex.quote(masked(self.uri))
        if self.uri.startswith(("http://", "https://")):
            return f"python -m webbrowser {shown}"
        return f"mlflow ui --backend-store-uri {shown}"

    # The background thread.

    def _work(self) -> None:
        delay = 0.0
        retry = _FIRST_RETRY_S
        while True:
            is_last = self._closing.wait(delay)
            try:
                self._send(self._client or self._connect(), is_last=is_last)
                delay, retry = _SEND_EVERY_S, _FIRST_RETRY_S
            except Exception as error:  # whatever a store throws, training goes on
                with self._lock:
                    self._warn_down(error)
                delay, retry = retry, min(2 * retry, _LAST_RETRY_S)
            if is_last:
                return

    def _connect(self) -> MlflowClient:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with opened_alone(self.uri):
            import mlflow  # 4 to 10 s

            client = mlflow.MlflowClient(tracking_uri=self.uri)
            wanted = WantedRun(self._run_id, self._run_name, self._experiment, self._tags)
            location = artifact_location(self.uri, self._artifact_root)
            # Kept at once: a failure must not lead to a second run.
            self._run_id = run_id = opened_run(client, wanted, location, self._told_of_another)
        write_record(self._directory, run_id, self.uri)
        self._known_params = dict(client.get_run(run_id).data.params)
        self._logged = logged_rows(client, run_id, self._method)
        self._client = client
        self._has_run.set()
        return client

    def _told_of_another(self, run_id: str) -> None:
        self._warn(f"MLflow at {masked(self.uri)} has no run {run_id}: going on as a new run.")

    def _send(self, client: MlflowClient, *, is_last: bool) -> None:
        from mlflow.exceptions import MlflowException

        if not is_last:
            self._watch_machine()
        while batch := self._next_batch():
            try:
                self._send_batch(client, batch)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                # Repeating cannot help, and would hold up all that is behind.
                self._warn(f"MLflow refused {len(batch)} entries: {masked(str(error))}")
            with self._lock:
                for _ in batch:
                    self._queue.popleft()
                if not any(isinstance(item, RoundEntry) for item in self._queue):
                    with suppress(OSError):
                        (self._directory / PENDING).unlink(missing_ok=True)
        self._send_deliveries(client, is_last=is_last)
        if is_last:
            if self._monitor is not None:
                self._monitor.finish()
            assert self._run_id is not None
            client.set_terminated(self._run_id, status=self._status)
        with self._lock:
            self._is_down = False

    def _next_batch(self) -> list[RoundEntry] | list[Params]:
        """The head of the queue: the parameters, or as many rows as one call takes, a row never split in two."""
        with self._lock:
            rows, num_metrics = [], 0
            for item in self._queue:
                if isinstance(item, Params):
                    return rows or [item]
                num_metrics += item.num_metrics
                if rows and num_metrics > _MAX_METRICS_PER_CALL:
                    break
                rows.append(item)
            return rows

    def _send_batch(self, client: MlflowClient, batch: list[RoundEntry] | list[Params]) -> None:
        from mlflow.entities import Metric

        assert self._run_id is not None
        fresh: dict[tuple[str, int], RoundEntry] = {}
        for item in batch:
            if isinstance(item, Params):
                self._send_params(client, item.values)
            elif item.identity not in self._logged:
                fresh.setdefault(item.identity, item)
        metrics = [
            Metric(key=key, value=value, timestamp=row.time_ms, step=row.round)
            for row in fresh.values()
            for key, value in row.metrics(self._method)
        ]
        # A call is one transaction, and the time stamp is the row's own: repeating one that did arrive adds nothing.
        for start in range(0, len(metrics), _MAX_METRICS_PER_CALL):
            client.log_batch(self._run_id, metrics=metrics[start : start + _MAX_METRICS_PER_CALL], synchronous=True)
        self._logged.update(fresh)

    def _send_deliveries(self, client: MlflowClient, *, is_last: bool) -> None:
        assert self._run_id is not None
        while self._deliveries:
            delivery = self._deliveries[0]
            try:
                delivery.send(client, self._run_id)
            except Exception as error:
                if not is_last:
                    raise
                self._warn(f"{delivery} could not be copied to MLflow: {masked(str(error))}")
            self._deliveries.popleft()

    def _send_params(self, client: MlflowClient, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        assert self._run_id is not None
        changed = [key for key, value in values.items() if self._known_params.get(key, value) != value]
        if changed:
            self._warn(
                "MLflow keeps the first values of parameters that changed on resume: "
                + ", ".join(f"{key} = {self._known_params[key]} (now {values[key]})" for key in changed)
            )
        new = [(key, value) for key, value in values.items() if key not in self._known_params]
        for start in range(0, len(new), _MAX_PARAMS_PER_CALL):
            chunk = new[start : start + _MAX_PARAMS_PER_CALL]
            client.log_batch(self._run_id, params=[Param(key, value) for key, value in chunk], synchronous=True)
            self._known_params.update(chunk)

    def _watch_machine(self) -> None:
        """Starts MLflow's monitor, and starts it again after a loss of the store, which it does not survive."""
        if not self._system_metrics or (self._monitor is not None and not self._is_down):
            return
        from mlflow.system_metrics import system_metrics_monitor

        try:
            if self._monitor is not None:
                self._monitor.finish()
            self._monitor = system_metrics_monitor.SystemMetricsMonitor(
                self._run_id, resume_logging=True, tracking_uri=self.uri
            )
            self._monitor.start()
        except Exception as error:  # e.g. no psutil: the run's own numbers matter more
            self._system_metrics = False
            _logger.info("no system metrics: %s", masked(str(error)))

    def _warn_down(self, error: Exception) -> None:
        """Warns at the first of a series of failures. The lock must be held."""
        if not self._is_down:
            self._is_down = True
            reason = masked(str(error)).strip().splitlines() or [type(error).__name__]
            self._warn(
                f"MLflow at {masked(self.uri)} cannot be written ({reason[0][:200]}); training goes on, "
                f"rows wait in {self._directory / PENDING}."
            )
