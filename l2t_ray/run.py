"""An experiment from its configuration to its run directory: what the jobs call.

runs/<name>/config.yaml         the resolved configuration
            metrics.parquet     one row a round and method
            summary.json        the closing table
            noise.json          where labels are wrong: matrix, realised rate, seed
            confusion.npz       test images by class and answer, an array for each method
            figures/*.png
            profile/            traces, if asked for
            loss.safetensors    the learned loss, with loss.md beside it
            checkpoints/
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from l2t_ray import config as configuration
from l2t_ray.config import ExperimentConfig, L2TDLNConfig
from l2t_ray.core.group import SingleProcess
from l2t_ray.core.heap import keep_freed_memory
from l2t_ray.core.loss_network import DynamicLossNetwork
from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.data.catalog import Dataset
from l2t_ray.exit_codes import exit_codes as exit_codes
from l2t_ray.experiment.images import CorruptedLabels, corrupted_labels, data_root, load_dataset
from l2t_ray.experiment.looks import check_hypergradient, closing_look
from l2t_ray.experiment.run import build_run, build_store, resolve_device
from l2t_ray.experiment.teachers import bare_loss_network
from l2t_ray.experiment.trial import try_arms
from l2t_ray.interfaces import DivergenceError, StoppedError, Tracker, UserError
from l2t_ray.reports.tables import comparison
from l2t_ray.stopping import StopRequest, listening
from l2t_ray.tracking.metrics import write_rows
from l2t_ray.tracking.mlflow import MlflowTracker, recorded_run_id
from l2t_ray.tracking.null import NullTracker
from l2t_ray.tracking.screen import Screen, summary_table
from l2t_ray.training.checkpoint import CheckpointStore, Cut

MAY_CHANGE_ON_RESUME = ("ray", "tracking", "device", "runs", "storage")
"""Sections that leave the trajectory alone."""


ARTIFACTS = (
    *("config.yaml", "confusion.npz", "figures", "loss.md", "loss.safetensors"),
    *("metrics.parquet", "noise.json", "summary.json"),
)
"""What tracking gets of a run directory: everything but checkpoints."""


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    directory: Path
    summaries: list[dict[str, Any]]
    loss_network: DynamicLossNetwork | None


@dataclass(frozen=True)
class Experiment:
    """One experiment, ready to run.

    >>> result = Experiment.from_yaml("configs/digits.yaml", ["ray.enabled=false"]).run()
    """

    config: ExperimentConfig
    directory: Path

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Experiment":
        """An experiment. Its run directory gets the configuration's name and the time, unless `name` is set.

        With a name, the same command goes on where it was interrupted: a job that is submitted again loses nothing.

        Raises:
            UserError: if the configuration is wrong, or the run directory holds a finished or another run.
        """
        config = configuration.load(Path(path), overrides)
        name = config.name or f"{Path(path).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        experiment = cls.of(config.model_copy(update={"name": name}))
        directory = experiment.directory
        if (directory / "config.yaml").exists():
            _check_same_run(configuration.load(directory / "config.yaml"), experiment.config, directory)
        return experiment

    @classmethod
    def of(cls, config: ExperimentConfig) -> "Experiment":
        """The experiment of a configuration with a name, which goes on from its newest checkpoint where it has one."""
        assert config.name is not None
        config, name = with_absolute_paths(config), config.name
        return cls(config, config.runs / name)

    @classmethod
    def resume(cls, directory: str | Path, overrides: Sequence[str] = ()) -> "Experiment":
        """An interrupted experiment, to go on from its newest checkpoint.

        Overrides may change where it runs (ray, tracking, device), not what it computes.

        Raises:
            UserError: if there is no run in the directory, or an override would change the trajectory.
        """
        directory = Path(directory).resolve()
        path = directory / "config.yaml"
        if not path.exists():
            raise UserError(f"{directory} holds no run (no config.yaml); give the directory of a run to --resume.")
        for override in overrides:
            if override.split(".")[0].split("=")[0] not in MAY_CHANGE_ON_RESUME:
                raise UserError(
                    f"override {override!r} would change a resumed run; "
                    f"only {', '.join(MAY_CHANGE_ON_RESUME)} may change, start a new run instead."
                )
        return cls(configuration.load(path, overrides), directory)

    def run(self, *, quiet: bool = False, tracker: Tracker | None = None, figures: bool = True) -> Result:
        """Trains every arm, from the newest checkpoint if there is one, and writes the run directory.

        Args:
            quiet: show nothing.
            tracker: hears of the run instead of the one that the configuration names.
            figures: draw them; a study draws its own.

        Raises:
            UserError: what was reached until then stays.
            StoppedError: on Ctrl-C or SIGTERM (see `stopping`), if this is called in the main thread.
            DivergenceError: if an arm diverged; the others have been trained, and everything is written.
        """
        screen = Screen(quiet=quiet)
        with listening(screen.message) as stop:
            try:
                return self._run(screen, stop, tracker, figures=figures)
            except KeyboardInterrupt:
                if not (self.directory / "config.yaml").exists():
                    raise  # there is nothing yet to go on with
                raise StoppedError(f"stopped at once; go on with --resume {self.directory}") from None
            except StoppedError as stopped:
                raise StoppedError(f"{stopped}; go on with --resume {self.directory}") from None

    def _run(self, screen: Screen, stop: StopRequest, tracker: Tracker | None, *, figures: bool) -> Result:
        config, directory = self.config, self.directory
        store = build_store(config, directory)
        # Everything that can be wrong with data and configuration is found here, before anything is started.
        device = resolve_device(config)
        # On Ray the teacher's first weights, which are fitted for seconds, are the actor's business.
        make_teacher = _idle_teacher if config.ray.enabled else None
        trial = build_run(config, group=SingleProcess(), device=torch.device("cpu"), make_teacher=make_teacher)
        try_arms(trial, config)
        start = store.latest()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            temporary = directory / ".config.yaml"
            temporary.write_text(config.to_yaml())
            temporary.replace(directory / "config.yaml")
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error.strerror}; set runs=DIR to another place.") from None
        tracker = tracker or _tracker(config, directory, screen)
        screen.message(f"run {directory}" + ("" if start is None else f", from round {start.round} of {start.arm}"))
        for note in load_dataset(config.data).notes:
            screen.message(f"data: {note}")
        screen.start([(name, config.training.num_rounds) for name in config.arms()])

        def show(rows: Sequence[Mapping[str, Any]]) -> None:
            for row in rows:
                screen.update(row)
            tracker.log_rows(rows)

        def on_rows(rows: Sequence[Mapping[str, Any]]) -> None:
            if rows:
                stop.rounds_began()
            show(rows)

        status = "KILLED"
        try:
            tracker.log_params(config.flat() | _noise_facts(config))
            if start is not None:
                show(start.rows)
            with _notes_on(screen):
                self._train(store, start, on_rows, device, stop)
            stop.rounds_ended()
            cut = store.latest()
            assert cut is not None
            try:
                result = self._write(cut, figures=figures)
            except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise UserError(
                    f"cannot write the results to {directory}: {reason}; the checkpoints hold everything: free space, "
                    f"then --resume {directory}."
                ) from None
            tracker.log_rows([_closing_row(summary) for summary in result.summaries])
            tracker.log_artifacts(*(str(path) for path in sorted(directory.iterdir()) if path.name in ARTIFACTS))
            screen.stop()
            screen.table(summary_table(result.summaries))
            screen.message(f"results in {directory}")
            if isinstance(tracker, MlflowTracker):
                screen.message(f"look:  {tracker.ui_command()}")
            if cut.diverged:
                raise DivergenceError(" ".join(cut.diverged.values()))
            status = "FINISHED"
        except BaseException as error:
            stop.rounds_ended()
            if not isinstance(error, KeyboardInterrupt | StoppedError):
                status = "FAILED"
            raise
        finally:
            screen.stop()
            tracker.finish(status)
        return result

    def check_hypergradient(self) -> tuple[dict[str, float], bool]:
        """See `experiment.check_hypergradient`."""
        return check_hypergradient(self.config)

    def _train(
        self, store: CheckpointStore, start: Cut | None, on_rows: Any, device: torch.device, stop: StopRequest
    ) -> None:
        config = self.config
        if config.ray.enabled:
            from l2t_ray.distributed.launch import launch  # Ray takes seconds to import, and a plain run needs none

            launch(config, self.directory, on_rows=on_rows, stop=stop)
            return
        keep_freed_memory()
        run = build_run(config, group=SingleProcess(), device=device, run_dir=self.directory)
        run.train(start=start, store=store, on_row=lambda row: on_rows([row]), should_stop=stop.is_asked)

    def _write(self, cut: Cut, *, figures: bool) -> Result:
        """Everything but checkpoints and configuration, from the last cut."""
        from l2t_ray.reports.figures import write_figures  # matplotlib takes a second to import, at the start

        config, directory = self.config, self.directory
        write_rows(directory / "metrics.parquet", cut.rows)
        summaries = [summarise(name, cut.rows, diverged=name in cut.diverged) for name in config.arms()]
        looks = closing_look(config, cut.finished, resolve_device(config)) if figures else {}
        for summary in summaries:
            look = looks.get(summary["arm"])
            summary["reproduced"] = None if look is None else look.reproduced
        (directory / "summary.json").write_text(json.dumps(summaries, indent=1))
        loss_network, surfaces = None, []
        if isinstance(config.method, L2TDLNConfig):
            num_classes = load_dataset(config.data).num_classes
            for round_index, phi in sorted(cut.snapshots[config.method.arm].items()):
                loss_network = bare_loss_network(config.method.loss_network, num_classes)
                with torch.no_grad():
                    loss_network.phi.copy_(phi)
                surfaces.append((f"round {round_index}", _on_arrays(loss_network.requires_grad_(False))))
            assert loss_network is not None
            loss_network.save(directory / "loss.safetensors")
            (directory / "loss.md").write_text(loss_card(config, loss_network, summaries))
        if figures:
            class_names = load_dataset(config.data).train.class_names
            confusions = {arm: look.confusion for arm, look in looks.items()}
            np.savez(directory / "confusion.npz", allow_pickle=False, **confusions)
            noise = _write_noise(config, directory)
            matrices = [] if noise is None else [("drawn from", noise.matrix), ("realised", noise.realised)]
            write_figures(
                directory,
                cut.rows,
                surfaces,
                confusions=confusions,
                noise=matrices,
                class_names=class_names,
            )
        return Result(directory, summaries, loss_network)


def _check_same_run(there: ExperimentConfig, wanted: ExperimentConfig, directory: Path) -> None:
    """Refuses to go on with a run that is finished, or that computes something else than what is wanted."""
    if (directory / "summary.json").exists():
        raise UserError(f"{directory} holds a finished run already; set another name=, or remove that directory.")
    old, new = there.flat(), wanted.flat()
    differing = [
        key
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in MAY_CHANGE_ON_RESUME and old.get(key) != new.get(key)
    ]
    if differing:
        key = differing[0]
        raise UserError(
            f"{directory} holds a run already, with {key}={old.get(key)} where this one has {new.get(key)}; set "
            f"another name=, or go on with it by --resume {directory}."
        )


def _noise_facts(config: ExperimentConfig) -> dict[str, Any]:
    """The noise that the training images really have, for tracking."""
    noise = corrupted_labels(config, load_dataset(config.data))
    if noise is None:
        return {}
    return {
        "noise.realised_rate": round(noise.rate, 5),
        "noise.num_images": len(noise.rows),
        "noise.seed": config.seed,
        "noise.realised_matrix": np.array2string(noise.realised, precision=2, suppress_small=True, threshold=400),
    }


def _write_noise(config: ExperimentConfig, directory: Path) -> CorruptedLabels | None:
    dataset = load_dataset(config.data)
    noise = corrupted_labels(config, dataset)
    if noise is not None:
        facts = {
            "kind": config.data.noise.kind,
            "rate": config.data.noise.rate,
            "seed": config.seed,
            "num_images": len(noise.rows),
            "realised_rate": noise.rate,
            "class_names": list(dataset.train.class_names),
            "matrix": noise.matrix.tolist(),
            "realised_matrix": noise.realised.tolist(),
            "validation": protocol(config, dataset),
        }
        (directory / "noise.json").write_text(json.dumps(facts, indent=1))
    return noise


def protocol(config: ExperimentConfig, dataset: Dataset) -> str:
    """What is judged by, in words: how many images, whose labels, and whether clean labels leak into training."""
    data = config.data
    if dataset.validation is not None:
        return f"the {len(dataset.validation):,} images that were set apart"
    what = f"{data.split} {data.num_validation:,} with {data.validation_labels} labels"
    leaks = data.split == "redivide" and data.validation_labels == "clean" and data.noise.kind != "none"
    return f"{what} (leaks clean labels: every image is judged by sooner or later)" if leaks else what


def _closing_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The closing numbers as a row for tracking: `final/<arm>/<name>`."""
    numbers = {name: float(value) for name, value in summary.items() if isinstance(value, float | int | bool)}
    return {"arm": f"final/{summary['arm']}", "round": summary["rounds"], **numbers}


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with every path absolute: workers, resumed runs and later commands run in other directories."""
    here, data = working_directory(), config.data
    root = here / data_root(os.environ.get("L2T_DATA"), data.root).expanduser()
    noise = data.noise
    if noise.file is not None:
        noise = noise.model_copy(update={"file": (here / noise.file.expanduser()).resolve()})
    data = data.model_copy(update={"root": root.resolve(), "noise": noise})
    return config.model_copy(update={"data": data, "runs": (here / config.runs.expanduser()).resolve()})


def working_directory() -> Path:
    """Where relative paths begin: here; at home in a submitted job, whose own directory is a copy that Ray deletes."""
    here = Path.cwd()
    return Path.home() if any(part.startswith("_ray_pkg_") for part in here.parts) else here


@contextmanager
def _notes_on(screen: Screen) -> Iterator[None]:
    """Shows what the package notes and warns of while it trains, such as the engine that `auto` chose."""
    logger, handler = logging.getLogger("l2t_ray"), logging.Handler(logging.INFO)
    handler.emit = lambda record: screen.message(record.getMessage())
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: screen.message(f"warning: {message}")
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.removeHandler(handler)
        logger.setLevel(level)


def summarise(arm: str, rows: Sequence[Mapping[str, Any]], *, diverged: bool = False) -> dict[str, Any]:
    """The closing numbers of an arm. Final means the last round; the best one seen is only for comparison.

    An arm that diverged has no final ones: its last round was never over.
    """
    own = [row for row in rows if row["arm"] == arm]
    accuracies = [row["test_accuracy"] for row in own if row.get("test_accuracy") is not None]
    last = {} if diverged else own[-1]
    return {
        "arm": arm,
        "rounds": len(own),
        "steps": own[-1]["step"] if own else 0,
        "test_accuracy": last.get("test_accuracy"),
        "best_test_accuracy": max(accuracies, default=None),
        "selected_test_accuracy": _selected(own),
        "test_error": last.get("test_error"),
        "val_error": last.get("val_error"),
        "seconds": sum(row["seconds"] for row in own),
        "diverged": diverged,
    }


def _selected(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Test accuracy where the accuracy on the validation part was best, the first of equals: a choice without the
    test set."""
    judged = [row for row in rows if row.get("validation_accuracy") is not None]
    return max(judged, key=lambda row: row["validation_accuracy"])["test_accuracy"] if judged else None


def loss_card(config: ExperimentConfig, loss_network: DynamicLossNetwork, summaries: list[dict[str, Any]]) -> str:
    """A page that says what a learned loss is, where it comes from and how it did."""
    spec, last = loss_network.spec, summaries[-1]
    classes = "any number of classes" if spec.num_classes is None else f"{spec.num_classes} classes"
    return f"""# A learned loss

`loss.safetensors` holds a dynamic loss network of {spec.num_weights:,} weights for {classes}, learned while a
{config.student.name} trained on {config.data.name} (noise: {config.data.noise.kind} {config.data.noise.rate:g}; seed
{config.seed}; {last["rounds"]} rounds of {config.training.num_steps} steps). Pairs: {spec.pairs}; activation:
{spec.activation}.

```python
from l2t_ray.core.loss_network import DynamicLossNetwork

loss_network = DynamicLossNetwork.load("loss.safetensors").requires_grad_(False)
loss_network.loss(student(images), labels).backward()
```
{"" if spec.memory is None else _MEMORY_CARD}
{comparison(summaries)}
The loss was learned with this student, data and learning rate, together with their schedule: on others, measure.
"""


_MEMORY_CARD = """
It has a memory too, which counts where it is given one (rows are the images of your training set). In training it was
brought up to date before each round; at each step is as good a time:

```python
from l2t_ray.core.memory import nothing_remembered, remembered

memory = nothing_remembered(num_images, num_classes, device)
for images, labels, indices in batches:
    logits = student(images)
    memory = remembered(memory, indices, logits.detach().softmax(dim=1))
    loss_network.loss(logits, labels, memory=memory[indices]).backward()
```
"""


def _idle_teacher(*_: Any) -> LocalTeacher:
    return LocalTeacher(torch.zeros(1), AdamRule(1))


def _on_arrays(loss_network: DynamicLossNetwork) -> Callable[[np.ndarray], np.ndarray]:
    """The loss network for plotting: numpy pairs in, numpy losses out."""
    return lambda pairs: loss_network(torch.from_numpy(pairs).float()).numpy()


def _tracker(config: ExperimentConfig, directory: Path, screen: Screen) -> Tracker:
    if not config.tracking.mlflow:
        return NullTracker()
    return MlflowTracker.start(
        uri=config.tracking.uri,
        directory=directory,
        experiment=config.tracking.experiment,
        run_name=directory.name,
        run_id=recorded_run_id(directory),
        tags={"data": config.data.name, "method": config.method.name},
        warn=screen.message,
    )
