"""Runs the trials of a study on Ray Tune, side by side, each in an actor that is used again for the next one.

Starting a process and importing torch costs more than a small trial: actors are therefore kept warm. A trial's state
is its run directory. Tune knows nothing of it: whatever dies, the trial begins anew on another actor, finds its
checkpoint there, and goes on bit for bit. So a study is resumed from its directory too, not from Tune's own state.
"""

import logging
import math
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from l2t_ray.assembly.tasks import headline_for
from l2t_ray.distributed.launch import ENVIRONMENT, ray_session
from l2t_ray.headline import ACCURACY, HEADLINE, metric_of
from l2t_ray.interfaces import UserError
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.studies.declaration import Asha
from l2t_ray.studies.outcome import Outcome, run_trial, write_outcome
from l2t_ray.studies.search import Search
from l2t_ray.studies.sweep import Forwarder, Listener
from l2t_ray.studies.trials import Trial

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # every trial has its own tables
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once: nothing is lost
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not what a study is resumed from
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output ignores verbose=0
}


def run_on_tune(
    pending: Sequence[Trial] | Search,
    listener: Listener,
    *,
    state: Path,
    config: ExperimentConfig,
    metric: str = ACCURACY.on_test,
    asha: Asha | None = None,
    at_once: int | None = None,
) -> None:
    """All trials, as many at once as the cluster has room for.

    Args:
        pending: the trials, or a search that gives one at a time, and is the listener then.
        state: directory for Tune's own files, emptied first.
        config: of the trials, or of one like them: its `ray` says on what each of them runs, and how often one is
            begun anew whose process or machine died.
        metric: what `asha` compares.
        at_once: at most so many.

    Raises:
        UserError: if the cluster has no room for a single trial.
    """
    if not pending:
        return
    for key, value in {**ENVIRONMENT, **TUNE_ENVIRONMENT}.items():
        os.environ.setdefault(key, value)
    # Every trial has its own tables: that Tune misses its own is no news.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    shutil.rmtree(state, ignore_errors=True)
    max_failures = config.ray.max_failures
    with ray_session(config):
        room = trials_at_once(config, ray.cluster_resources())
        for times_left in range(max_failures, -1, -1):
            relay = _Relay(listener, max_failures, keeps_interrupted=times_left > 0 and not isinstance(pending, Search))
            _tuner(
                pending,
                relay,
                state=state,
                config=config,
                metric=metric,
                asha=asha,
                at_once=min(room, at_once or room),
            ).fit()
            if not (pending := relay.interrupted):
                return


def _tuner(
    pending: Sequence[Trial] | Search,
    relay: "_Relay",
    *,
    state: Path,
    config: ExperimentConfig,
    metric: str,
    asha: Asha | None,
    at_once: int,
) -> tune.Tuner:
    is_search = isinstance(pending, Search)
    actor = tune.with_parameters(TrialActor, metric=metric, in_step=asha is not None)
    return tune.Tuner(
        tune.with_resources(actor, resources_of_driver(config)),
        param_space={} if is_search else {"trial": tune.grid_search(list(pending))},
        tune_config=tune.TuneConfig(
            search_alg=_Asked(pending) if is_search else None,
            num_samples=-1 if is_search else 1,
            max_concurrent_trials=at_once,
            # A trial on Ray Train is stopped with its process, and has little to keep warm. One whose memory is
            # reported has a process of its own.
            reuse_actors=not config.ray.enabled and (is_search or pending[0].is_lean),
            scheduler=None if asha is None else _scheduler(metric, asha, config.training.num_rounds),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=tune.FailureConfig(max_failures=config.ray.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[relay],
            verbose=0,
        ),
    )


def resources_of_driver(config: ExperimentConfig) -> dict[str, float]:
    """What a trial's own process asks for. With Ray Train the workers do the work, and a driver that held a CPU would
    keep them from it."""
    if config.ray.enabled:
        return {"CPU": 0.01}
    needs = {"CPU": float(config.ray.cpus_per_worker)}
    return {**needs, "GPU": 1.0} if config.ray.use_gpu or config.device == "cuda" else needs


def trials_at_once(config: ExperimentConfig, available: Mapping[str, float]) -> int:
    """How many trials the cluster has room for.

    Raises:
        UserError: if for none.
    """
    if config.ray.enabled:
        workers = config.ray.num_workers
        needs = {"CPU": workers * config.ray.cpus_per_worker, "GPU": workers if config.ray.use_gpu else 0}
    else:
        needs = resources_of_driver(config)
    room = min(math.floor(available.get(kind, 0) / need) for kind, need in needs.items() if need)
    if room < 1:
        wanted, there = (", ".join(f"{d.get(kind, 0):g} {kind}" for kind in needs) for d in (needs, available))
        raise UserError(
            f"a trial needs {wanted} and the cluster has {there}; set ray.num_workers, ray.use_gpu or device in the "
            "settings of the study, or join a larger cluster with RAY_ADDRESS."
        )
    return room


def _scheduler(metric: str, asha: Asha, num_rounds: int) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="round",
        metric="value",
        mode="max" if metric_of(metric).higher_is_better else "min",
        max_t=num_rounds,
        grace_period=min(asha.grace_rounds, num_rounds),
        reduction_factor=asha.reduction,
    )


class _Asked(Searcher):
    """Brings the trials of a search to Tune. What comes of them the search hears as the study's listener."""

    def __init__(self, search: Search):
        super().__init__()
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as `_Relay`

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial = self._search.next()
        return Searcher.FINISHED if trial is None else {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass


class _Stopped(Exception):
    """The scheduler has given the trial up."""


class TrialActor(tune.Trainable):
    """Trains one trial in a thread of its own, and reports whenever the test set was passed over."""

    def setup(self, config: dict[str, Any], *, metric: str = ACCURACY.on_test, in_step: bool = False) -> None:
        self._metric, self._in_step = metric, in_step
        self._begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config["trial"])
        return True

    def step(self) -> dict[str, Any]:
        self._go_on.release()
        rows, end = [], None
        while end is None:
            item = self._news.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Mapping):
                rows.append(item)
                if self._is_to_decide(item):
                    break
            else:
                end = item
        result: dict[str, Any] = {"rows": rows, "round": self._round, "done": end is not None}
        for row in rows:
            result["round"] = self._round = row["round"] + 1
            if (value := row.get(self._metric.removeprefix("best_"))) is not None:
                self._value = value
        result["value"] = self._value
        if isinstance(end, Outcome):
            result["outcome"] = end
        elif end is not None:
            result["failure"] = str(end)
        return result

    def cleanup(self) -> None:
        self._end()

    def _hear(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hears the trial in training, in its thread."""
        for row in rows:
            if self._is_stopped.is_set():
                raise _Stopped
            self._news.put(dict(row))
            if self._in_step and self._is_to_decide(row):
                self._go_on.acquire()  # the scheduler is to decide before training goes on

    def _is_to_decide(self, row: Mapping[str, Any]) -> bool:
        """Whether the scheduler is asked after this row: not where all rounds are done, for a trial that it stopped
        there would not count as finished."""
        return row.get(self._evaluated) is not None and row["round"] + 1 < self._num_rounds

    def _begin(self, trial: Trial) -> None:
        self._round, self._value, self._num_rounds = 0, math.nan, trial.config.training.num_rounds
        self._evaluated = headline_for(trial.config).on_test
        self._news: queue.Queue[Any] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._train, args=(trial,), daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._is_stopped.set()
        self._go_on.release()
        self._thread.join()

    def _train(self, trial: Trial) -> None:
        import torch

        if not trial.config.ray.enabled:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        try:
            self._news.put(run_trial(trial, Forwarder(self._hear)))
        except _Stopped:
            pass
        except UserError as error:  # trying again would not help
            self._news.put(str(error))
        except Exception as error:
            self._news.put(error)


class _Relay(tune.Callback):
    """Brings what actors report to the study's listener.

    Attributes:
        interrupted: trials that are to be run again. Tune begins a trial anew whose actor dies under it, but not one
            whose warm actor dies on the way from the last trial to this one.
    """

    def __init__(self, listener: Listener, max_failures: int, *, keeps_interrupted: bool):
        self._listener, self._max_failures, self._keeps_interrupted = listener, max_failures, keeps_interrupted
        self.interrupted: list[Trial] = []
        self._last: dict[str, dict[str, Any]] = {}
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; this one lives in the study's process alone

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        own = trial.config["trial"]
        self._listener.on_rows(own, result["rows"])
        self._last.setdefault(own.name, {}).update(
            {key: v for row in result["rows"] for key, v in row.items() if v is not None}
        )
        if "outcome" in result:
            self._ended.add(own.name)
            self._listener.on_end(own, result["outcome"])
        elif "failure" in result:
            self._ended.add(own.name)
            self._listener.on_failure(own, result["failure"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        own = trial.config["trial"]
        if own.name in self._ended:
            return
        self._ended.add(own.name)
        last = self._last.get(own.name, {})
        headline = headline_for(own.config)
        numbers = {"rounds": last.get("round", -1) + 1, HEADLINE: headline.name}
        numbers |= {headline.best: last.get(headline.on_test), **last}
        outcome = Outcome("stopped", numbers, f"given up after {numbers['rounds']} rounds")
        self._listener.on_end(own, write_outcome(own.directory, outcome))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        own = trial.config["trial"]
        self._ended.add(own.name)
        if self._keeps_interrupted and trial.num_failures <= self._max_failures:
            self.interrupted.append(own)
            return
        reason = ""
        with suppress(Exception):
            reason = str(trial.get_pickled_error() or "").strip().splitlines()[-1]
        self._listener.on_failure(own, reason or f"died more than {self._max_failures} times")
