"""The table of a comparison: several methods, several seeds each, and the paper's figures beside them.

Trials are read from MLflow, or from the run directories where it was not in use:

    <directory>/<arm>/seed<k>/outcome.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from matplotlib import rc_context
from matplotlib.figure import Figure

from l2t_ray.headline import ACCURACY, with_unit
from l2t_ray.interfaces import Metric
from l2t_ray.reports import figures
from l2t_ray.reports.paper_accuracies import Published
from l2t_ray.reports.spread import MISSING, Spread, spread, spread_text
from l2t_ray.reports.tables import markdown
from l2t_ray.tracking.metrics import read_rows
from l2t_ray.tracking.runs import find_runs

CELL, SEED = "cell", "seed"
"""Tags of a trial in MLflow; the cell of a comparison's is the method."""
FINAL = "final"
"""Before the names of a trial's final metrics there: the same for every method."""


class TrialResult(NamedTuple):
    """One method trained with one seed: its final metrics by name, as in `summary.json`."""

    arm: str
    seed: int
    numbers: Mapping[str, Any]

    @property
    def has_diverged(self) -> bool:
        return bool(self.numbers.get("diverged"))


class TableColumn(NamedTuple):
    """A column of the table: its name in `summary.json`, its heading, and how it is shown."""

    name: str
    heading: str
    factor: float | int = 1
    digits: int = 2


def columns_of(headline: Metric) -> tuple[TableColumn, ...]:
    """The columns of a table about this headline."""
    own = ((headline.on_test, "final"), (headline.best, "best seen"), (headline.selected, "chosen on validation"))
    return (
        *(TableColumn(name, with_unit(heading, headline), headline.factor, headline.digits) for name, heading in own),
        TableColumn("reproduced", "memorised wrong labels [%]", 100, 1),
        TableColumn("seconds", "time [s]", 1, 0),
        TableColumn("peak_memory_mb", "memory [MB]", 1, 0),
    )


BASE, REFERENCE = "cross_entropy", "true_labels"
"""Arms between which a method's gain is measured, where a comparison has both: what wrong labels cost, and what there
is to win."""


class Entry(NamedTuple):
    """A line of the table: the spread over seeds by column, and how many of the trials diverged."""

    arm: str
    spreads: Mapping[str, Spread | None]
    num_trials: int
    num_diverged: int


def from_mlflow(uri: str, experiment: str, parent_run_id: str) -> list[TrialResult]:
    """The closed trials of a comparison; of several with the same arm and seed the last."""
    results = {}
    for run in find_runs(uri, experiment, parent_run_id=parent_run_id):
        arm, seed = run.tags[CELL], int(run.tags[SEED])
        numbers = {
            k.split("/")[1]: v for k, v in run.metrics.items() if k.startswith(f"{FINAL}/") and k.count("/") == 1
        }
        if numbers:
            results[arm, seed] = TrialResult(arm, seed, numbers)
    return list(results.values())


def from_directories(directory: Path) -> list[TrialResult]:
    """The same, from what the trials left on disk."""
    results = []
    for path in sorted(directory.glob("*/seed*/outcome.json")):
        arm, seed = path.parts[-3], int(path.parts[-2].removeprefix("seed"))
        results.append(TrialResult(arm, seed, json.loads(path.read_text())["numbers"]))
    return results


def entries(results: Sequence[TrialResult], arms: Sequence[str], headline: Metric = ACCURACY) -> list[Entry]:
    """A line for each of `arms` that has results, in that order. Trials that diverged have no part in the spreads."""
    lines = []
    for arm in arms:
        own = [result for result in results if result.arm == arm]
        if own:
            whole = [result.numbers for result in own if not result.has_diverged]
            spreads = {
                column.name: spread(numbers.get(column.name) for numbers in whole) for column in columns_of(headline)
            }
            lines.append(Entry(arm, spreads, len(own), len(own) - len(whole)))
    return lines


def shares_of_gap(lines: Sequence[Entry], headline: Metric = ACCURACY) -> dict[str, float]:
    """By arm, the share of the way from `BASE` to `REFERENCE` that its mean has come, in the final headline; below 0 it
    is worse than `BASE`. Nothing where a comparison lacks one of them, or they are no further apart than seeds."""
    spreads = {line.arm: own for line in lines if (own := line.spreads[headline.on_test]) is not None}
    if BASE not in spreads or REFERENCE not in spreads:
        return {}
    base, gap = spreads[BASE].mean, spreads[REFERENCE].mean - spreads[BASE].mean
    least = max(10**-headline.digits / headline.factor, *(spreads[arm].std or 0 for arm in (BASE, REFERENCE)))
    if (gap if headline.higher_is_better else -gap) < least:
        return {}
    return {arm: (own.mean - base) / gap for arm, own in spreads.items()}


def as_markdown(lines: Sequence[Entry], published: Mapping[str, Published], headline: Metric = ACCURACY) -> str:
    """The table. What the paper reports stands in columns of its own, with where it comes from."""
    columns = [column for column in columns_of(headline) if any(line.spreads[column.name] for line in lines)]
    headings, shares = ["method", *(column.heading for column in columns)], shares_of_gap(lines, headline)
    headings += ["of the gap closed [%]"] * bool(shares)
    has_diverged, has_paper = any(line.num_diverged for line in lines), bool(published)
    headings += ["diverged"] * has_diverged + ["paper [%]", "source"] * has_paper
    rows = []
    for line in lines:
        cells = [line.arm, *(spread_text(line.spreads[c.name], factor=c.factor, digits=c.digits) for c in columns)]
        if shares:
            cells.append(f"{100 * shares[line.arm]:.0f}" if line.arm in shares else MISSING)
        if has_diverged:
            cells.append(f"{line.num_diverged} of {line.num_trials}")
        if has_paper:
            theirs = published.get(line.arm)
            cells += [MISSING, MISSING] if theirs is None else [theirs.shown(), theirs.source]
        rows.append(cells)
    return markdown(headings, rows)


def write_table(
    path: Path, lines: Sequence[Entry], published: Mapping[str, Published], headline: Metric = ACCURACY
) -> None:
    """The table as Parquet: mean, standard deviation and count of each column; the paper's figures in their own."""
    rows, shares = [], shares_of_gap(lines, headline)
    for line in lines:
        row: dict[str, Any] = {"arm": line.arm, "trials": line.num_trials, "diverged": line.num_diverged}
        for column in columns_of(headline):
            value = line.spreads[column.name]
            row[f"{column.name}_mean"] = None if value is None else value.mean
            row[f"{column.name}_std"] = None if value is None else value.std
            row[f"{column.name}_n"] = 0 if value is None else value.n
        theirs = published.get(line.arm)
        row["gap_closed"] = shares.get(line.arm)
        row["paper_accuracy_percent"] = None if theirs is None else theirs.accuracy
        row["paper_std_percent"] = None if theirs is None else theirs.std
        row["paper_source"] = None if theirs is None else theirs.source
        rows.append(row)
    kinds = {"arm": pa.string(), "paper_source": pa.string(), "trials": pa.int64(), "diverged": pa.int64()}
    names = list(rows[0]) if rows else []
    schema = pa.schema([(name, kinds.get(name, pa.int64() if name.endswith("_n") else pa.float64())) for name in names])
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def comparison_figure(
    lines: Sequence[Entry], published: Mapping[str, Published], headline: Metric = ACCURACY
) -> Figure:
    """The final headline with its deviation, the best one seen on the way, and the paper's in grey."""
    factor = headline.factor
    with rc_context(figures.STYLE):
        figure = figures.blank_figure(6.4, 0.34 * len(lines) + 1.2)
        ax = figure.subplots()
        for place, line in enumerate(lines):
            final, best = line.spreads[headline.on_test], line.spreads[headline.best]
            theirs, colour = published.get(line.arm), figures.COLOURS[0]
            if best is not None:
                ax.plot(factor * best.mean, place, "o", mfc="white", mec=colour, zorder=2)
            if final is not None:
                deviation = factor * (final.std or 0)
                ax.errorbar(factor * final.mean, place, xerr=deviation, fmt="o", color=colour, capsize=3, zorder=3)
            if theirs is not None:
                ax.plot(theirs.accuracy, place, "D", color="#999999", markersize=4, zorder=1)
        ax.set_yticks(range(len(lines)), [line.arm for line in lines])
        ax.invert_yaxis()
        legend = f"{headline.unit}   (dot: final, mean and deviation; ring: best seen; grey: the paper's)"
        ax.set(title=f"Test {headline.title}", xlabel=legend)
    return figure


def mean_rows(directory: Path, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """The metrics of all trials, averaged over seeds by arm and round; rounds that not all seeds have are left out."""
    collected: dict[tuple[str, int], list[dict[str, Any]]] = {}
    seeds = {arm: sum(r.arm == arm and not r.has_diverged for r in results) for arm in {r.arm for r in results}}
    for result in results:
        path = trial_directory(directory, result.arm, result.seed) / "metrics.parquet"
        if not result.has_diverged and path.exists():
            for row in read_rows(path):
                collected.setdefault((row["arm"], row["round"]), []).append(row)
    means = []
    for (arm, index), rows in collected.items():
        if len(rows) == seeds[arm]:
            row: dict[str, Any] = {"arm": arm, "round": index}
            for name in rows[0]:
                values = [value for other in rows if (value := other.get(name)) is not None]
                if name not in row and len(values) == len(rows):
                    row[name] = float(np.mean(values))
            means.append(row)
    return means


def summed_confusions(directory: Path, results: Sequence[TrialResult]) -> dict[str, np.ndarray]:
    """Test images by class and answer, over the seeds, by arm."""
    sums: dict[str, np.ndarray] = {}
    for result in results:
        path = trial_directory(directory, result.arm, result.seed) / "confusion.npz"
        if path.exists():
            with np.load(path) as file:
                for arm, matrix in file.items():
                    sums[arm] = sums.get(arm, 0) + matrix
    return sums


def trial_directory(directory: Path, arm: str, seed: int) -> Path:
    return directory / arm / f"seed{seed}"
