"""Every method on the same noisy labels, with several seeds: trials in directories of their own, and one table.

runs/<name>/comparison.json          what is compared
            <arm>/seed<k>/           a run directory for each trial, with `outcome.json` when it has ended
            table.md table.parquet   the table, kept up to date while trials end; trials.parquet has a row a trial
            figures/

A trial that has ended is not trained again, one that was interrupted goes on from its checkpoint. So the same command
repeated finishes what is left, and more methods or seeds can be asked for later.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as parquet

from l2t_ray import config as configuration
from l2t_ray.config import CrossEntropyConfig, ExperimentConfig, MethodConfig, RayConfig
from l2t_ray.experiment.images import build_policy, load_dataset
from l2t_ray.interfaces import DivergenceError, StoppedError, Tracker, UserError
from l2t_ray.reports import comparison as table
from l2t_ray.reports.comparison import ARM_TAG, OUTCOME, SEED_TAG, TrialResult, trial_directory
from l2t_ray.reports.figures import save_figures, write_figures
from l2t_ray.reports.published import noisy_labels
from l2t_ray.run import Experiment, protocol, with_absolute_paths
from l2t_ray.studies.protocols import own_schedule
from l2t_ray.tracking.memory import PeakMemory
from l2t_ray.tracking.mlflow import MlflowTracker, recorded_run_id
from l2t_ray.tracking.null import NullTracker
from l2t_ray.tracking.screen import Screen

Budget = Literal["parity", "protocol"]
OnRows = Callable[[Sequence[Mapping[str, Any]]], None]
SHORT = "cross_entropy-short"
"""Under `protocol`, cross-entropy on the configuration's own, shorter schedule: a long one overfits the noise."""


@dataclass(frozen=True)
class Trial:
    """One method with one seed."""

    arm: str
    seed: int
    config: ExperimentConfig
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class TrackingSpec:
    """Which MLflow run a trial is a child of; no URI: none is kept."""

    uri: str | None
    experiment: str
    parent_run_id: str | None


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where. Make one with `of`."""

    config: ExperimentConfig
    ray: RayConfig
    directory: Path
    seeds: tuple[int, ...]
    budget: Budget
    only: tuple[str, ...]

    @classmethod
    def of(
        cls,
        path: Path,
        overrides: Sequence[str] = (),
        *,
        seeds: Sequence[int] = (0, 1, 2),
        budget: Budget = "parity",
        only: Sequence[str] = (),
    ) -> "Comparison":
        """The comparison of an experiment's method and controls.

        `ray` of the configuration says how many trials run side by side and on what; `ray.enabled=false` trains them
        one after the other in this process. Each trial is one process either way.

        Args:
            only: names of methods; empty: all.

        Raises:
            UserError: if the configuration is wrong, or `only` names a method that is not in it.
        """
        # On Ray a run has one teacher, so two learned losses are refused there. Here each method is a run of its own.
        config = configuration.load(path, [*overrides, "ray.enabled=false", "device=auto"])
        ray = configuration.load(path, [*overrides, "controls=[]"]).ray
        config = with_absolute_paths(config)
        name = config.name or (path.stem if budget == "parity" else f"{path.stem}-{budget}")
        comparison = cls(config, ray, config.runs / name, tuple(seeds), budget, tuple(only))
        unknown = [arm for arm in only if arm not in comparison.methods()]
        if unknown:
            known = ", ".join(comparison.methods())
            raise UserError(f"--only names {unknown[0]!r}, and {path} has {known}; choose among these.")
        return comparison

    def methods(self) -> dict[str, MethodConfig]:
        """By name, in the order of the table."""
        methods = self.config.arms()
        return methods if self.budget == "parity" else {SHORT: CrossEntropyConfig(label=SHORT), **methods}

    def trials(self) -> list[Trial]:
        """All that are asked for; seeds vary slowest, so that half of them are all methods with fewer seeds."""
        arms = [arm for arm in self.methods() if not self.only or arm in self.only]
        return [self._trial(arm, seed) for seed in self.seeds for arm in arms]

    def _trial(self, arm: str, seed: int) -> Trial:
        method, directory = self.methods()[arm], trial_directory(self.directory, arm, seed)
        config = self.config.model_copy(
            update={
                "name": directory.name,
                "runs": directory.parent,
                "seed": seed,
                "method": method,
                "controls": (),
                "training": self._training(arm, method),
            }
        )
        return Trial(arm, seed, config, directory)

    def _training(self, arm: str, method: MethodConfig) -> configuration.TrainingConfig:
        if self.budget == "parity" or arm == SHORT:
            return self.config.training
        num_train = len(build_policy(self.config, load_dataset(self.config.data)).at(0).train)
        return own_schedule(self.config.training, method, num_train)

    def run(self, *, quiet: bool = False) -> str:
        """Trains what has not ended yet, and writes tables and figures.

        Returns:
            The table as Markdown.

        Raises:
            UserError: if a trial's directory holds another experiment, or the data is not there.
            StoppedError: on Ctrl-C or SIGTERM; checkpoints have what was reached.
            RuntimeError: at the end, naming the trials that stopped for other reasons than divergence.
        """
        trials = self.trials()
        pending = [trial for trial in trials if not has_ended(trial)]
        self._write_facts()
        screen = Screen(quiet=quiet)
        tracker = self._tracker(screen)
        screen.message(f"{self.directory}: {len(trials)} trials, {len(trials) - len(pending)} of them done")
        status, failures = "KILLED", {}
        try:
            tracker.log_params(self.config.flat() | {"budget": self.budget})
            spec = _spec(self.config, tracker)
            screen.start([(trial.name, trial.config.training.num_rounds) for trial in pending])

            def on_end(trial: Trial, message: str) -> None:
                screen.message(f"{trial.name}: {message}")
                self.write_table(table.from_directories(self.directory))

            def on_rows(rows: Sequence[Mapping[str, Any]]) -> None:
                for row in rows:
                    screen.update(row)

            failures = self._train(pending, spec, on_rows, on_end)
            results = table.from_directories(self.directory)
            if spec.uri is not None and spec.parent_run_id is not None:
                tracked = table.from_mlflow(spec.uri, spec.experiment, spec.parent_run_id)
                if {(r.arm, r.seed) for r in tracked} >= {(r.arm, r.seed) for r in results}:
                    results = tracked
            text = self.write_table(results)
            self.write_figures(results)
            tracker.log_artifacts(*(str(path) for path in sorted(self.directory.iterdir()) if _is_result(path)))
            status = "FAILED" if failures else "FINISHED"
        except (KeyboardInterrupt, StoppedError):
            raise StoppedError("stopped; the same command goes on from here") from None
        finally:
            screen.stop()
            tracker.finish(status)
        screen.message(text)
        screen.message(f"results in {self.directory}")
        if failures:
            raise RuntimeError(
                f"{len(failures)} of {len(trials)} trials stopped: "
                + "; ".join(f"{name}: {message}" for name, message in failures.items())
                + ". The same command tries them again."
            )
        return text

    def write_table(self, results: Sequence[TrialResult]) -> str:
        """Writes table.md, table.parquet and trials.parquet; returns the first."""
        published = self._published()
        lines = table.entries(results, list(self.methods()))
        text = table.as_markdown(lines, published) + "\n" + self._caption()
        (self.directory / "table.md").write_text(text)
        table.write_table(self.directory / "table.parquet", lines, published)
        rows = [{"arm": r.arm, "seed": r.seed, **_plain(r.numbers)} for r in results]
        if rows:
            names = sorted({name for row in rows for name in row} - {"arm", "seed"})
            schema = pa.schema([("arm", pa.string()), ("seed", pa.int64()), *((name, pa.float64()) for name in names)])
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), self.directory / "trials.parquet")
        return text

    def write_figures(self, results: Sequence[TrialResult]) -> None:
        """The table as a figure, and what was measured in the rounds, averaged over seeds."""
        lines = table.entries(results, list(self.methods()))
        rows = table.mean_rows(self.directory, results)
        order = {arm: place for place, arm in enumerate(self.methods())}
        rows.sort(key=lambda row: (order.get(row["arm"], len(order)), row["round"]))
        confusions = table.summed_confusions(self.directory, results)
        names = load_dataset(self.config.data).train.class_names
        write_figures(self.directory, rows, confusions=confusions, class_names=names)
        if lines:
            # Beside a smaller size the paper's figures would squeeze ours together; they stay in the table.
            is_whole = self.config.data.num_train is None and self.config.data.image_size is None
            figure = table.comparison_figure(lines, self._published() if is_whole else {})
            save_figures(self.directory, {"table": figure})

    def _train(
        self, pending: Sequence[Trial], spec: TrackingSpec, on_rows: OnRows, on_end: Callable[[Trial, str], None]
    ) -> dict[str, str]:
        """Trains the trials; what stopped some of them, by name."""
        if self.ray.enabled and pending:
            from l2t_ray.studies.side_by_side import train_side_by_side

            return train_side_by_side(pending, spec, self.ray, on_rows, on_end)
        failures = {}
        for trial in pending:
            try:
                on_end(trial, run_trial(trial, spec, on_rows))
            except (RuntimeError, OSError) as error:
                failures[trial.name] = f"{type(error).__name__}: {error}"
        return failures

    def _published(self):
        noise = self.config.data.noise
        return noisy_labels(self.config.data.name, noise.rate) if noise.kind == "flip_to_two" else {}

    def _caption(self) -> str:
        data, training = self.config.data, self.config.training
        noise, judges = data.noise, protocol(self.config, load_dataset(data))
        what = f"{noise.kind} {noise.rate:g}" if noise.file is None else f"{noise.kind} of {noise.file.name}"
        size = "" if data.image_size is None else f" at {data.image_size}x{data.image_size}"
        images = "all other" if data.num_train is None else f"{data.num_train:,}"
        budget = (
            f"{training.num_rounds * training.num_steps:,} steps of {training.batch_size} images for every method"
            if self.budget == "parity"
            else "the schedule of each method's own paper, as far as it is known"
        )
        lines = [
            f"{data.name}{size}, {images} training images, noise {what}; {self.config.student.name} "
            f"({self.config.student.widths}). Validation: {judges}. Budget `{self.budget}`: {budget}.",
            "Mean ± standard deviation (number of seeds). Final: after the last step. Best seen: picked on the test "
            "set, for information. Time: training steps alone.",
        ]
        if self._published():
            lines.append("The paper's figures: ResNet-32 on the whole set, in its authors' hands; no part of ours.")
        facts = json.loads((self.directory / "comparison.json").read_text())
        lines.append(f"Commit {facts['commit'] or 'unknown'}; `{facts['command']}`.")
        return "\n\n".join(lines) + "\n"

    def _write_facts(self) -> None:
        facts = {
            "methods": list(self.methods()),
            "seeds": list(self.seeds),
            "budget": self.budget,
            "commit": _commit(),
            "command": shlex.join(["python", *sys.argv]),
            "config": self.config.model_dump(mode="json"),
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "comparison.json").write_text(json.dumps(facts, indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.directory}: {error.strerror}; set runs=DIR to another place."
            ) from None

    def _tracker(self, screen: Screen) -> Tracker:
        if not self.config.tracking.mlflow:
            return NullTracker()
        return MlflowTracker.start(
            uri=self.config.tracking.uri,
            directory=self.directory,
            experiment=self.config.tracking.experiment,
            run_name=self.directory.name,
            run_id=recorded_run_id(self.directory),
            tags={"data": self.config.data.name, "study": "noisy_labels", "budget": self.budget},
            warn=screen.message,
        )


def has_ended(trial: Trial) -> bool:
    """Whether a trial has its outcome already.

    Raises:
        UserError: if its directory holds another experiment.
    """
    path = trial.directory / "config.yaml"
    if path.exists():
        old, new = (_what_counts(config) for config in (configuration.load(path), trial.config))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            raise UserError(
                f"{trial.directory} was trained with other settings ({changed[0]} {old.get(changed[0])!r}, now "
                f"{new.get(changed[0])!r}); give this comparison a name= of its own, or remove that directory."
            )
    return (trial.directory / OUTCOME).exists()


def run_trial(trial: Trial, spec: TrackingSpec, on_rows: OnRows) -> str:
    """Trains one trial in this process, from its newest checkpoint if it has one. How it ended, in words.

    Raises:
        UserError, RuntimeError: where there is no outcome.
    """
    tracker = TrialTracker(trial, spec, on_rows)
    try:
        result = Experiment(trial.config, trial.directory).run(quiet=True, tracker=tracker)
        numbers = result.summaries[-1]
        message = f"{100 * numbers['test_accuracy']:.2f} %"
    except DivergenceError as error:
        numbers = json.loads((trial.directory / "summary.json").read_text())[-1]
        message = str(error)
    numbers["peak_memory_mb"] = tracker.peak_memory_mb
    outcome = {"arm": trial.arm, "seed": trial.seed, "numbers": numbers, "message": message}
    temporary = trial.directory / f".{OUTCOME}"
    temporary.write_text(json.dumps(outcome, indent=1))
    temporary.replace(trial.directory / OUTCOME)
    return message


class TrialTracker:
    """The `Tracker` of a trial: its rows go on under its name, and to a child of the comparison's MLflow run."""

    def __init__(self, trial: Trial, spec: TrackingSpec, on_rows: OnRows):
        self._trial, self._on_rows, self._memory = trial, on_rows, PeakMemory()
        self.peak_memory_mb: float | None = None
        self._inner: Tracker = NullTracker()
        if spec.uri is not None:
            self._inner = MlflowTracker.start(
                uri=spec.uri,
                directory=trial.directory,
                experiment=spec.experiment,
                run_name=trial.name,
                run_id=recorded_run_id(trial.directory),
                parent_run_id=spec.parent_run_id,
                tags={ARM_TAG: trial.arm, SEED_TAG: str(trial.seed), "method": trial.config.method.name},
                system_metrics=False,
            )

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._inner.log_params(params)

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        is_closing = any(row["arm"].startswith("final/") for row in rows)
        if is_closing:
            self.peak_memory_mb = self._memory.megabytes()
            rows = [{**row, "peak_memory_mb": self.peak_memory_mb} for row in rows]
        else:
            self._on_rows([{**row, "arm": self._trial.name} for row in rows])
        self._inner.log_rows(rows)

    def log_artifacts(self, *paths: str) -> None:
        self._inner.log_artifacts(*paths)

    def finish(self, status: str) -> None:
        self._inner.finish(status)


def _spec(config: ExperimentConfig, tracker: Tracker) -> TrackingSpec:
    if not isinstance(tracker, MlflowTracker):
        return TrackingSpec(None, config.tracking.experiment, None)
    return TrackingSpec(tracker.uri, config.tracking.experiment, tracker.wait_for_run_id())


def _what_counts(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that a trial's trajectory depends on, by dotted key."""
    apart = ("ray.", "tracking.", "runs", "device", "name", "data.root", "data.verify", "data.download")
    return {key: value for key, value in config.flat().items() if not key.startswith(apart)}


def _plain(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in numbers.items() if name != "arm"}


def _is_result(path: Path) -> bool:
    return path.suffix in (".md", ".parquet") or path.name in ("figures", "comparison.json")


def _commit() -> str | None:
    """The commit of this package's code, with a `+` where files were changed since; None outside of a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
