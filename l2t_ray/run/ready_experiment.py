"""An experiment, ready to run."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from l2t_ray.assembly.anchor_sizes import with_anchors
from l2t_ray.assembly.inspection import check_hypergradient
from l2t_ray.assembly.run import build_run, resolve_device
from l2t_ray.assembly.teachers import idle_teacher
from l2t_ray.assembly.trial import try_arms
from l2t_ray.bilevel.heap import give_back_memory
from l2t_ray.extras import Need, need
from l2t_ray.interfaces import StoppedError, Tracker
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run.conduct import Conduct
from l2t_ray.run.paths import with_absolute_paths
from l2t_ray.run.results import Result
from l2t_ray.run.written import check_same, check_unfinished, read_config, with_credentials
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.stopping import listening
from l2t_ray.tracking.screen import Screen
from l2t_ray.training.place import RunPlace, taken

_LONGEST_STEM = 80


@dataclass(frozen=True)
class Experiment:
    """One experiment, ready to run.

    >>> result = Experiment.from_yaml("configs/digits.yaml", ["ray.enabled=false"]).run()

    Attributes:
        config: all of its settings.
        directory: where it runs. A `new` one that somebody else makes first gets a number (`Result.directory`).
        begins: what the directory may hold already: a run to `go_on` with, even a finished one; an `unfinished` one;
            or nothing (`new`).
    """

    config: ExperimentConfig
    directory: Path
    begins: Literal["go_on", "unfinished", "new"] = "go_on"

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Experiment":
        """An experiment. Its run directory gets the configuration's name and the time, unless `name` is set.

        With a name, the same command goes on where it was interrupted: a job that is submitted again loses nothing.

        Raises:
            UserError: if the configuration is wrong, or the run directory holds a finished or another run.
        """
        config = configuration.load(Path(path), overrides)
        if config.name is None:
            timed = cls.of(config.model_copy(update={"name": f"{_stem(path)}-{time.strftime('%Y%m%d-%H%M%S')}"}))
            return cls(timed.config, timed.directory, "new")
        named = cls.of(config)
        check_unfinished(named.directory)
        check_same(named.directory, named.config)
        return cls(named.config, named.directory, "unfinished")

    @classmethod
    def of(cls, config: ExperimentConfig) -> "Experiment":
        """The experiment of a configuration with a name, which goes on from its newest checkpoint where it has one.

        Raises:
            UserError: if a setting is to follow from the data, and they do not say.
        """
        assert config.name is not None
        config, name = with_anchors(with_absolute_paths(config)), config.name
        return cls(config, config.runs / name)

    @classmethod
    def resume(cls, directory: str | Path, overrides: Sequence[str] = ()) -> "Experiment":
        """An interrupted experiment, to go on from its newest checkpoint.

        Overrides may change where it runs (ray, tracking, device), not what it computes.

        Raises:
            UserError: if there is no run in the directory, it needs credentials that it did not write down, or an
                override would change the trajectory.
        """
        directory = Path(directory).resolve()
        remedy = f"give it again: --resume {directory} {{key}}=URI"
        return cls(with_credentials(read_config(directory, overrides), remedy=remedy), directory)

    def run(self, *, quiet: bool = False, tracker: Tracker | None = None, figures: bool = True) -> Result:
        """Trains every arm, from the newest checkpoint if there is one, and writes the run directory.

        Args:
            quiet: show nothing.
            tracker: records the run instead of the one that the configuration names.
            figures: draw them; a study draws its own.

        Raises:
            UserError: what was reached until then stays; also if another process is at work in the directory.
            StoppedError: on Ctrl-C or SIGTERM (see `stopping`), if this is called in the main thread.
            DivergenceError: if an arm diverged; the others have been trained, and everything is written.
        """
        check_installed(self.config, tracks=tracker is None, draws=figures)
        screen = Screen(quiet=quiet)
        with listening(screen.message) as stop:
            # Everything that can be wrong with data and configuration is found here, before anything is started.
            device = resolve_device(self.config)
            # On Ray the teacher's first weights, which are fitted for seconds, are the actor's business.
            make_teacher = idle_teacher if self.config.ray.enabled else None
            trial = build_run(self.config, group=SingleProcess(), device=torch.device("cpu"), make_teacher=make_teacher)
            if self.config.training.try_first:
                try_arms(trial, self.config)
            del trial  # its weights and its loss are not those that are trained
            with taken(self.directory, is_new=self.begins == "new") as place:
                self._check(place)
                try:
                    return Conduct(self._called(place), place, device, screen, stop).run(tracker, figures=figures)
                except KeyboardInterrupt:
                    if not place.has_begun:
                        raise  # there is nothing yet to go on with
                    raise StoppedError(f"stopped at once; go on with --resume {place.directory}") from None
                except StoppedError as stopped:
                    raise StoppedError(f"{stopped}; go on with --resume {place.directory}") from None
                finally:
                    give_back_memory()

    def check_hypergradient(self) -> tuple[dict[str, float], bool]:
        """See `assembly.inspection.check_hypergradient`."""
        return check_hypergradient(self.config)

    def _check(self, place: RunPlace) -> None:
        """Once more, now that nobody else can change the directory."""
        if self.begins == "unfinished":
            check_unfinished(place.directory)
        check_same(place.directory, self.config)

    def _called(self, place: RunPlace) -> ExperimentConfig:
        if place.directory == self.directory:
            return self.config
        return self.config.model_copy(update={"name": place.directory.name})


def check_installed(config: ExperimentConfig, *, tracks: bool, draws: bool) -> None:
    """Whether all is installed that a run will need at last.

    Args:
        tracks: in MLflow, if the configuration says so.
        draws: figures.

    Raises:
        UserError: if an extra is missing.
    """
    needs = []
    if config.ray.enabled:
        needs.append(Need("ray", "ray.enabled=true", "set ray.enabled=false"))
    if tracks and config.tracking.mlflow:
        needs.append(Need("mlflow", "tracking.mlflow=true", "set tracking.mlflow=false"))
    if draws:
        needs.append(Need("matplotlib", "drawing figures"))
    need(*needs)


def _stem(path: str | Path) -> str:
    """The name of a configuration file, as far as a run can be called so."""
    return re.sub(r"[^\w.+=-]+", "_", Path(path).stem).lstrip(".-")[:_LONGEST_STEM] or "run"
