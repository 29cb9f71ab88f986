"""Samples chosen by what earlier ones came to: Optuna asks, and is told.

`samples.json` in the study's directory has every sample from before its trial starts, so that a study that was killed
goes on with the samples it had, and Optuna hears of those that have ended as if it had just asked for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2t_ray.extras import needed_by
from l2t_ray.headline import metric_of
from l2t_ray.interfaces import UserError
from l2t_ray.studies.declaration import Distribution, Study
from l2t_ray.studies.outcome import Outcome, read_outcome
from l2t_ray.studies.sweep import Listener, Sweep
from l2t_ray.studies.trials import Trial, draws

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MOST_AT_RANDOM = 10
"""Samples before Optuna has something to go by, at most: a quarter of all."""


class Search:
    """The trials of a study, one at a time, each chosen when it is asked for. It listens to how they end, and passes
    everything on to the study's own listener.

    With one trial at a time the same study chooses the same samples, killed on the way or not. With several, what is
    chosen depends on which of them ends first.

    Raises:
        UserError: if Optuna is not installed.
    """

    def __init__(self, sweep: Sweep, listener: Listener):
        optuna = _import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._sweep, self._listener = optuna, sweep, listener
        study = sweep.study
        self._maximise = metric_of(sweep.metric).higher_is_better
        self._study = optuna.create_study(direction="maximize" if self._maximise else "minimize")
        self._space = {key: _in_optuna(optuna, d) for key, d in study.distributions.items()}
        self._at_random = draws(study.distributions, min(MOST_AT_RANDOM, max(1, study.samples // 4)))
        self._numbers: dict[str, int] = {}
        self._interrupted: list[Trial] = []
        for trial, sample in zip(sweep.trials, sweep.samples, strict=True):
            self._numbers[trial.name] = self._ask(sample)[0]
            if outcome := read_outcome(trial.directory):
                self._tell(trial, outcome)
            else:
                self._interrupted.append(trial)

    def trials(self) -> Iterator[Trial]:
        """All that are left: first those that were interrupted."""
        while trial := self.next():
            yield trial

    def next(self) -> Trial | None:
        """The next trial, or None after the last one."""
        if self._interrupted:
            return self._interrupted.pop(0)
        index = len(self._sweep.samples)
        if index >= self._sweep.study.samples:
            return None
        number, sample = self._ask(self._at_random[index] if index < len(self._at_random) else None)
        trial = self._sweep.add_sample(sample)
        self._numbers[trial.name] = number
        return trial

    def on_rows(self, trial: Trial, rows: Sequence[Mapping[str, Any]]) -> None:
        self._listener.on_rows(trial, rows)

    def on_end(self, trial: Trial, outcome: Outcome) -> None:
        self._tell(trial, outcome)
        self._listener.on_end(trial, outcome)

    def on_failure(self, trial: Trial, message: str) -> None:
        self._listener.on_failure(trial, message)

    def _ask(self, sample: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Optuna's number for a sample: the one given, or one of its own choice."""
        # A generator of its own for each choice: what it is depends on what is known, not on how often it was resumed.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=len(self._numbers), n_startup_trials=len(self._at_random), constant_liar=True
        )
        choices = {key: d.choice for key, d in self._sweep.study.distributions.items() if d.choice is not None}
        if sample is not None:
            self._study.enqueue_trial({k: choices[k].index(v) if k in choices else v for k, v in sample.items()})
        asked = self._study.ask(self._space)
        return asked.number, {k: choices[k][v] if k in choices else v for k, v in asked.params.items()}

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        worst = 0.0 if self._maximise else float("inf")
        value = None if outcome.kind == "diverged" else outcome.numbers.get(self._sweep.metric)
        self._study.tell(self._numbers[trial.name], worst if value is None else value)


def check_search(study: Study) -> None:
    """
    Raises:
        UserError: if Optuna is not installed, or the study has several seeds.
    """
    if len(study.seeds) != 1:
        raise UserError(f"search: optuna goes by one seed, and the study has {len(study.seeds)}; set seeds: 1.")
    _import_optuna()


def _import_optuna() -> Any:
    with needed_by("search: optuna", otherwise="set search: random"):
        import optuna
    return optuna


def _in_optuna(optuna: Any, distribution: Distribution) -> "BaseDistribution":
    """The distribution, in Optuna's terms; a choice by its place, for Optuna's own may hold nothing but scalars."""
    if distribution.uniform is not None:
        return optuna.distributions.FloatDistribution(*distribution.uniform)
    if distribution.log_uniform is not None:
        return optuna.distributions.FloatDistribution(*distribution.log_uniform, log=True)
    if distribution.integers is not None:
        return optuna.distributions.IntDistribution(*distribution.integers)
    assert distribution.choice is not None
    return optuna.distributions.CategoricalDistribution(range(len(distribution.choice)))
