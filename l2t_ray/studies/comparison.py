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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as parquet

from l2t_ray.assembly.images import build_policy, open_dataset
from l2t_ray.assembly.run import resolve_device
from l2t_ray.assembly.tasks import headline_for
from l2t_ray.headline import HEADLINE
from l2t_ray.interfaces import FailureLimitError, Metric, StoppedError, UserError
from l2t_ray.masking import masked, masked_tree
from l2t_ray.methods.cross_entropy import CrossEntropyConfig
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.reports import comparison_table as table
from l2t_ray.reports.comparison_table import TrialResult, trial_directory
from l2t_ray.reports.figures import save_figures, write_figures
from l2t_ray.reports.paper_accuracies import noisy_labels
from l2t_ray.run import protocol, with_absolute_paths
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig, RayConfig, TrainingConfig
from l2t_ray.studies.log import StudyLog
from l2t_ray.studies.outcome import read_outcome
from l2t_ray.studies.sweep import run_in_turn
from l2t_ray.studies.trials import Trial, check_trials
from l2t_ray.tracking.screen import Screen

Budget = Literal["parity", "protocol"]
SHORT = "cross_entropy-short"
"""Under `protocol`, cross-entropy on the configuration's own, shorter schedule: a long one overfits the noise."""


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
        config = configuration.load(path, overrides, settings={"ray.enabled": False})
        ray = configuration.load(path, overrides, settings={"controls": []}).ray
        config = with_absolute_paths(config)
        name = config.name or (path.stem if budget == "parity" else f"{path.stem}-{budget}")
        comparison = cls(config, ray, config.runs / name, tuple(seeds), budget, tuple(only))
        unknown = [arm for arm in only if arm not in comparison.methods()]
        if unknown:
            known = ", ".join(comparison.methods())
            raise UserError(f"--only names {unknown[0]!r}, and {path} has {known}; choose among these.")
        return comparison

    @property
    def headline(self) -> Metric:
        """What the table is about."""
        return headline_for(self.config)

    def methods(self) -> dict[str, MethodSettings]:
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
        return Trial(f"{arm} seed {seed}", (arm,), seed, config, is_lean=False)

    def _training(self, arm: str, method: MethodSettings) -> TrainingConfig:
        """The configuration's schedule, or that of the method's own paper where it is asked for and known."""
        training, schedule = self.config.training, method.paper_schedule
        if self.budget == "parity" or arm == SHORT or schedule is None:
            return training
        num_train = len(build_policy(self.config, open_dataset(self.config.data)).at(0).train)
        return training.model_copy(update=schedule.training(num_train, training.num_steps))

    def run(self, *, quiet: bool = False) -> str:
        """Trains what has not ended yet, and writes tables and figures.

        Returns:
            The table as Markdown.

        Raises:
            UserError: if a trial's directory holds another experiment, or the data is not there.
            StoppedError: on Ctrl-C or SIGTERM; checkpoints have what was reached.
            FailureLimitError: at the end, naming the trials that stopped for other reasons than divergence.
        """
        trials = self.trials()
        for trial in trials:
            _check_settings(trial)
        resolve_device(self.config)
        check_trials(trials)
        pending = [trial for trial in trials if read_outcome(trial.directory) is None]
        self._write_facts()
        screen = Screen(quiet=quiet)
        screen.message(f"{self.directory}: {len(trials)} trials, {len(trials) - len(pending)} of them done")
        log = StudyLog(
            self.directory,
            lambda: trials,
            total=len(trials),
            tracking=self.config.tracking,
            axes=["method"],
            metric=self.headline.on_test,
            tags={"study": "noisy_labels", "data": self.config.data.name, "budget": self.budget},
            params=self.config.flat() | {"budget": self.budget},
            say=screen.message,
            after_each=lambda: self.write_table(table.from_directories(self.directory)),
        )
        status = "KILLED"
        try:
            log.catch_up()
            if self.ray.enabled:
                from l2t_ray.studies.on_tune import run_on_tune  # Ray takes seconds to import

                config = self.config.model_copy(update={"ray": self.ray.model_copy(update={"enabled": False})})
                run_on_tune(pending, log, state=self.directory / "tune", config=config)
            else:
                run_in_turn(pending, log)
            log.close_trials()
            results = table.from_directories(self.directory)
            if log.place is not None:
                uri, parent = log.place
                tracked = table.from_mlflow(uri, self.config.tracking.experiment, parent)
                if {(r.arm, r.seed) for r in tracked} >= {(r.arm, r.seed) for r in results}:
                    results = tracked
            text = self.write_table(results)
            self.write_figures(results)
            status = "FAILED" if log.failures else "FINISHED"
        except (KeyboardInterrupt, StoppedError):
            raise StoppedError("stopped; the same command goes on from here") from None
        finally:
            log.close(status, _results(self.directory), {})
        screen.message(text)
        screen.message(f"results in {self.directory}")
        if log.failures:
            raise FailureLimitError(
                f"{len(log.failures)} of {len(trials)} trials stopped: {'; '.join(log.failures)}. The same command "
                "tries them again."
            )
        return text

    def write_table(self, results: Sequence[TrialResult]) -> str:
        """Writes table.md, table.parquet and trials.parquet; returns the first."""
        published = self._published()
        lines = table.entries(results, list(self.methods()), self.headline)
        text = table.as_markdown(lines, published, self.headline) + "\n" + self._caption()
        (self.directory / "table.md").write_text(text)
        table.write_table(self.directory / "table.parquet", lines, published, self.headline)
        rows = [{"arm": r.arm, "seed": r.seed, **_plain(r.numbers)} for r in results]
        if rows:
            names = sorted({name for row in rows for name in row} - {"arm", "seed"})
            schema = pa.schema([("arm", pa.string()), ("seed", pa.int64()), *((name, pa.float64()) for name in names)])
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), self.directory / "trials.parquet")
        return text

    def write_figures(self, results: Sequence[TrialResult]) -> None:
        """The table as a figure, and what was measured in the rounds, averaged over seeds."""
        lines = table.entries(results, list(self.methods()), self.headline)
        rows = table.mean_rows(self.directory, results)
        order = {arm: place for place, arm in enumerate(self.methods())}
        rows.sort(key=lambda row: (order.get(row["arm"], len(order)), row["round"]))
        confusions = table.summed_confusions(self.directory, results)
        names = open_dataset(self.config.data).train.class_names
        write_figures(self.directory, rows, confusions=confusions, class_names=names, headline=self.headline)
        if lines:
            # Beside a smaller size the paper's figures would squeeze ours together; they stay in the table.
            is_whole = self.config.data.num_train is None and self.config.data.image_size is None
            figure = table.comparison_figure(lines, self._published() if is_whole else {}, self.headline)
            save_figures(self.directory, {"table": figure})

    def _published(self):
        noise = self.config.data.noise
        is_theirs = noise.kind == "flip_to_two" and self.config.data.imbalance.kind == "none"
        return noisy_labels(self.config.data.name, noise.rate) if is_theirs else {}

    def _caption(self) -> str:
        data, training = self.config.data, self.config.training
        noise, validation = data.noise, protocol(self.config, open_dataset(data))
        what = f"{noise.kind} {noise.rate:g}" if noise.file is None else f"{noise.kind} of {noise.file.name}"
        options = ", ".join(f"{key} {value}" for key, value in self.config.student.options().items())
        student = f"{self.config.student.name} ({options})" if options else self.config.student.name
        size = "" if data.image_size is None else f" at {data.image_size}x{data.image_size}"
        images = "all other" if data.num_train is None else f"{data.num_train:,}"
        imbalance = data.imbalance
        thinned = "" if imbalance.kind == "none" else f" ({imbalance.kind} imbalance, factor {imbalance.factor:g})"
        budget = (
            f"{training.num_rounds * training.num_steps:,} steps of {training.batch_size} images for every method"
            if self.budget == "parity"
            else "the schedule of each method's own paper, as far as it is known"
        )
        lines = [
            f"{data.name}{size}, {images} training images{thinned}, noise {what}; {student}. Validation: {validation}. "
            f"Budget `{self.budget}`: {budget}.",
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
            "command": masked(shlex.join(["python", *sys.argv])),
            "config": masked_tree(self.config.model_dump(mode="json")),
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "comparison.json").write_text(json.dumps(facts, indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.directory}: {error.strerror}; set runs=DIR to another place."
            ) from None


def _check_settings(trial: Trial) -> None:
    """
    Raises:
        UserError: if the trial's directory holds another experiment.
    """
    path = trial.directory / "config.yaml"
    if not path.exists():
        return
    old, new = (_what_counts(config) for config in (configuration.load(path), trial.config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        raise UserError(
            f"{trial.directory} was trained with other settings ({changed[0]} {old.get(changed[0])!r}, now "
            f"{new.get(changed[0])!r}); give this comparison a name= of its own, or remove that directory."
        )


def _what_counts(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that a trial's trajectory depends on, by dotted key."""
    apart = ("ray.", "tracking.", "runs", "device", "name", "data.root", "data.verify", "data.download")
    return {key: value for key, value in config.flat().items() if not key.startswith(apart)}


def _plain(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    no_numbers = ("arm", HEADLINE)
    return {name: None if value is None else float(value) for name, value in numbers.items() if name not in no_numbers}


def _results(directory: Path) -> list[Path]:
    """What the comparison wrote beside its trials."""
    return sorted(
        path for pattern in ("*.md", "*.parquet", "comparison.json", "figures/*") for path in directory.glob(pattern)
    )


def _commit() -> str | None:
    """The commit of this package's code, with a `+` where files were changed since; None outside of a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
