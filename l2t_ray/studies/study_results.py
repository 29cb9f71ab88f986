"""From the run directories of a study to one mapping that tables, figures and reports are made of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2t_ray.assembly.images import open_dataset
from l2t_ray.headline import HEADLINE, metric_of
from l2t_ray.reports.study import write_study
from l2t_ray.studies.outcome import Outcome, read_outcome
from l2t_ray.studies.sweep import Sweep
from l2t_ray.studies.trials import Trial, axes, by_cell
from l2t_ray.tracking.metrics import read_rows

CURVES = ("logit_gradient_sum", "gradient_norm")
"""Over the rounds, beside the headline."""
FILE = "results.json"


def write_study_results(sweep: Sweep, *, command: str) -> list[Path]:
    """Writes `results.json`, and the tables and figures made of it, into the study's directory."""
    results = collect(sweep, command=command)
    path = sweep.directory / FILE
    path.write_text(json.dumps(results, indent=1))
    return [path, *write_study(sweep.directory, results)]


def collect(sweep: Sweep, *, command: str) -> dict[str, Any]:
    """What the trials came to, as far as they have ended.

    A trial that diverged has no accuracy: it counts as chance, one over the number of classes, and is counted beside.
    It has no number at all where there is no such thing as chance, as for an error.
    """
    study = sweep.study
    config = sweep.planned[0].config
    headline, metric = sweep.metrics[0], sweep.metric
    of_guessing = metric_of(metric).chance
    chance = None if of_guessing is None else of_guessing(open_dataset(config.data).num_classes)
    cells = by_cell(sweep.trials)
    return {
        "name": study.name,
        "size": study.size,
        "title": study.title,
        "claim": study.claim,
        "table": study.table,
        "command": command,
        HEADLINE: headline.name,
        "metric": metric,
        "axes": axes(study),
        "seeds": list(study.seeds),
        "paper": study.paper,
        "setting": _setting(study.settings, config.data.name, config.student.name, config.training.num_rounds),
        "chance": chance,
        "cells": [_cell(cell, trials, metric, chance) for cell, trials in cells.items()],
        "curves": {
            column: [{"cell": cell, **curve} for cell, trials in cells.items() if (curve := _curve(trials, column))]
            for column in (headline.on_test, *CURVES)
        },
    }


def _setting(settings: Mapping[str, Any], data: str, student: str, num_rounds: int) -> str:
    shown = [f"{key}={json.dumps(value)}" for key, value in settings.items() if not key.startswith(("ray", "method"))]
    return f"{data}, {student}, {num_rounds} rounds" + (f" ({', '.join(shown)})" if shown else "")


def _cell(cell: Sequence[str], trials: Sequence[Trial], metric: str, chance: float | None) -> dict[str, Any]:
    outcomes = [read_outcome(trial.directory) for trial in trials]
    return {
        "cell": list(cell),
        "values": [_value(outcome, metric, chance) for outcome in outcomes],
        "outcomes": [None if outcome is None else outcome.kind for outcome in outcomes],
        "seconds": [None if outcome is None else outcome.numbers.get("seconds") for outcome in outcomes],
    }


def _value(outcome: Outcome | None, metric: str, chance: float | None) -> float | None:
    if outcome is None:
        return None
    return chance if outcome.kind == "diverged" else outcome.numbers.get(metric)


def _curve(trials: Sequence[Trial], column: str) -> dict[str, Any] | None:
    """Mean and standard deviation over the seeds, round by round, where at least one has a value."""
    values: dict[int, list[float]] = {}
    for trial in trials:
        table = trial.directory / "metrics.parquet"
        for row in read_rows(table) if table.exists() else []:
            if row.get(column) is not None:
                values.setdefault(row["round"] + 1, []).append(row[column])
    if not values:
        return None
    rounds = sorted(values)
    return {
        "rounds": rounds,
        "mean": [float(np.mean(values[r])) for r in rounds],
        "std": [float(np.std(values[r], ddof=1)) if len(values[r]) > 1 else 0.0 for r in rounds],
    }
