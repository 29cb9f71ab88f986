"""From a study to its trials: experiments with a name, a place in the table and a seed."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2t_ray.assembly.run import build_run, build_store
from l2t_ray.assembly.teachers import idle_teacher
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.run.written import with_credentials
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.studies.declaration import Distribution, Study, label_of


@dataclass(frozen=True)
class Trial:
    """One experiment of a study or comparison.

    Attributes:
        name: no other trial of the same study has it.
        cell: label on each axis of the study, in the order of `axes`.
        seed: of the experiment.
        config: the experiment, with the name of its run directory.
        is_lean: leaves numbers behind, and neither figures nor, when it has ended, checkpoints.
    """

    name: str
    cell: tuple[str, ...]
    seed: int
    config: ExperimentConfig
    is_lean: bool = True

    @property
    def directory(self) -> Path:
        assert self.config.name is not None
        return self.config.runs / self.config.name


def axes(study: Study) -> list[str]:
    """What the trials differ in, seeds apart: `case` and the keys of grid and distributions."""
    return [*(["case"] if study.cases else []), *study.grid, *(["sample"] if study.distributions else [])]


def trials(study: Study, directory: Path, *, source: str) -> list[Trial]:
    """All trials of a study, each with a run directory of its own under `directory`; seeds vary slowest, so that a
    study that is stopped half way has all of its table from fewer seeds.

    Raises:
        UserError: if a trial is not a possible experiment; the message names its cell.
    """
    cells = list(_cells(study))
    return [
        _trial(study, directory, i * len(cells) + j, cell, settings, seed, source)
        for i, seed in enumerate(study.seeds)
        for j, (cell, settings) in enumerate(cells)
    ]


def trial_of_sample(study: Study, directory: Path, index: int, sample: Mapping[str, Any], *, source: str) -> Trial:
    """The trial of one sample, in a study that has only samples and one seed.

    Raises:
        UserError: as `trials`.
    """
    return _trial(
        study, directory, index, (_listed(index, sample),), {**study.settings, **sample}, study.seeds[0], source
    )


def _cells(study: Study) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Labels and settings of each cell of the table."""
    places: list[list[tuple[str, Mapping[str, Any]]]] = []
    if study.cases:
        places.append(list(study.cases.items()))
    for key, axis in study.grid.items():
        places.append([(label, {key: value}) for label, value in axis.items()])
    if study.distributions:
        samples = draws(study.distributions, study.samples)
        places.append([(_listed(i, sample), sample) for i, sample in enumerate(samples)])
    for chosen in product(*places):
        settings = dict(study.settings)
        for _, part in chosen:
            settings |= part
        yield tuple(label for label, _ in chosen), settings


def draws(distributions: Mapping[str, Distribution], number: int) -> list[dict[str, Any]]:
    """Independent draws, the same ones every time."""
    return [{key: _draw(d, key, i) for key, d in distributions.items()} for i in range(number)]


def _draw(distribution: Distribution, key: str, index: int) -> Any:
    generator = np.random.default_rng((zlib.crc32(key.encode()), index))
    if distribution.uniform is not None:
        return float(generator.uniform(*distribution.uniform))
    if distribution.log_uniform is not None:
        low, high = distribution.log_uniform
        return exp(generator.uniform(log(low), log(high)))
    if distribution.integers is not None:
        low, high = distribution.integers
        return int(generator.integers(low, high, endpoint=True))
    assert distribution.choice is not None
    return distribution.choice[generator.integers(len(distribution.choice))]


def _trial(
    study: Study,
    directory: Path,
    index: int,
    cell: tuple[str, ...],
    settings: Mapping[str, Any],
    seed: int,
    source: str,
) -> Trial:
    name = re.sub(r"[^\w.+=-]+", "_", f"{index:04d}-{'-'.join(cell)}-seed{seed}")[:120]
    config = experiment_of(
        study.base,
        {**settings, "controls": [], "seed": seed, "name": name, "runs": str(directory)},
        source=f"trial {', '.join(cell)!r} of {source}",
    )
    return Trial(name, cell, seed, config)


def check_paper(study: Study, cells: Sequence[tuple[str, ...]]) -> None:
    """
    Raises:
        UserError: if a number of the paper has no place in the table.
    """
    is_matrix = len(axes(study)) > 1
    rows = {", ".join(cell[:-1]) if is_matrix else cell[0] for cell in cells}
    columns = {cell[-1] for cell in cells}
    for row, numbers in study.paper.items():
        if row not in rows:
            raise UserError(
                f"paper of the study {study.name} has a row {row!r}; its rows are {', '.join(sorted(rows))}."
            )
        if isinstance(numbers, Mapping) != is_matrix:
            wanted = f"a number for each column ({', '.join(sorted(columns))})" if is_matrix else "one number"
            raise UserError(f"paper.{row} of the study {study.name} must be {wanted}, got {numbers!r}.")
        for column in numbers if isinstance(numbers, Mapping) else ():
            if column not in columns:
                raise UserError(
                    f"paper.{row} of the study {study.name} has a column {column!r}; "
                    f"its columns are {', '.join(sorted(columns))}."
                )


def check_trials(all_trials: Sequence[Trial]) -> None:
    """Puts each different experiment together once, and trains none.

    Raises:
        UserError: if data is missing or an experiment is impossible: that is to be said once and at the beginning.
    """
    different = {trial.config.model_copy(update=_LEAVES_ALL_POSSIBLE).to_yaml(): trial for trial in all_trials}
    for trial in different.values():
        try:
            build_store(trial.config, trial.directory)
            build_run(trial.config, group=SingleProcess(), device=torch.device("cpu"), make_teacher=idle_teacher)
        except UserError as error:
            raise UserError(f"trial {', '.join(trial.cell)!r}: {error}") from None


_LEAVES_ALL_POSSIBLE = {"seed": 0, "name": None, "runs": Path()}


def experiment_of(base: Path, settings: Mapping[str, Any], *, source: str) -> ExperimentConfig:
    """The experiment of a file with settings by dotted key; paths in it are absolute.

    Raises:
        UserError: as `config.load`; if credentials were left out of what a study wrote down.
    """
    config = configuration.load(base, settings=settings, source=source)
    return Experiment.of(with_credentials(config, remedy="begin under another --runs")).config


def _listed(index: int, sample: Mapping[str, Any]) -> str:
    """With its number, for small samples and rounded ones may be the same."""
    return f"{index + 1}: " + ", ".join(
        f"{key.split('.')[-1]}={f'{value:.3g}' if isinstance(value, float) else label_of(value)}"
        for key, value in sample.items()
    )


def by_cell(all_trials: Sequence[Trial]) -> dict[tuple[str, ...], list[Trial]]:
    """The trials of each cell, in the table's order."""
    found: dict[tuple[str, ...], list[Trial]] = {}
    for trial in all_trials:
        found.setdefault(trial.cell, []).append(trial)
    return found
