"""What a study is, as a frozen record: one experiment, and what is varied in it.

A study is a YAML file (configs/studies/). Its trials are all combinations of a case, a value of each key of the grid,
a sample of the distributions and a seed; each is an experiment of its own. Keys are the dotted ones of any experiment.
"""

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from l2t_ray.interfaces import Metric, UserError
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings import yaml_file
from l2t_ray.settings.record import Count, FilePath, Natural, Positive, Real, Record, Whole
from l2t_ray.settings.sentence import value_text
from l2t_ray.settings.tree import Settings

SizeName = Literal["digits", "small", "full"]
MetricName = Literal["headline", "best_headline", "test_accuracy", "best_test_accuracy", "test_error", "val_error"]

OWN_KEYS = ("seed", "name", "runs", "controls")
"""Keys of an experiment that a study sets itself."""
SAME_FOR_ALL = ("ray", "tracking")
"""Sections that no two trials of a study may have different: where they run, and where they are noted."""

MOST_TRIALS = 10_000
"""More than anybody waits for."""


def _seeds(value: Any) -> Any:
    """A number of seeds stands for the first ones."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        value = range(min(value, MOST_TRIALS + 1))
    if not isinstance(value, list | tuple | range):
        raise ValueError(f"seeds must be a number of seeds or a list of them, got {value_text(value)}")
    if len(value) > MOST_TRIALS:
        raise ValueError(f"seeds are more than {MOST_TRIALS:,}; a study has at most that many trials")
    return value


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds has a seed twice, got {list(seeds)}")
    return seeds


def _flat_settings(value: Any) -> Any:
    return {} if value is None else value


def _labelled(value: Any) -> Any:
    """Values without labels are labelled by themselves."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"the grid takes a list of values for each key, or labels and values, got {value_text(value)}")
    labelled = {label_of(entry): entry for entry in value}
    if len(labelled) < len(value):
        raise ValueError(f"the grid has a value twice, got {list(value)}")
    return labelled


def label_of(value: Any) -> str:
    """How a value is shown: text as it is, anything else as in a flow of YAML."""
    if isinstance(value, Mapping) and set(value) == {"name"}:
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


Seeds = Annotated[tuple[Natural, ...], BeforeValidator(_seeds), Field(min_length=1), AfterValidator(_once_each)]
Bound = Annotated[Whole, Field(ge=-(2**62), le=2**62)]
PaperNumbers = Annotated[
    Annotated[Real, Tag("number")] | Annotated[dict[str, Real], Tag("numbers")],
    Discriminator(lambda value: "numbers" if isinstance(value, Mapping) else "number"),
]
Axis = Annotated[dict[str, Any], BeforeValidator(_labelled), Field(min_length=1)]


class Distribution(Record):
    """Where the values of a key are drawn from: exactly one of the fields."""

    uniform: tuple[Real, Real] | None = None
    log_uniform: tuple[Positive, Positive] | None = None
    integers: tuple[Bound, Bound] | None = None
    """Both ends included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Distribution":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"a distribution is exactly one of {names}; got {', '.join(given) or 'none'}")
        bounds = self.uniform or self.log_uniform or self.integers
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} goes from low to high, got {list(bounds)}")
        return self


class Asha(Record):
    """Stops the worse trials early (asynchronous successive halving, Li et al. 2020)."""

    grace_rounds: Count = 20
    """Rounds that every trial gets."""
    reduction: Annotated[Whole, Field(ge=2, le=1000)] = 3
    """Of this many trials, one goes on at each rung."""


class Size(Record):
    """What a size of a study has of its own; the rest is the study's."""

    base: FilePath | None = None
    seeds: Seeds | None = None
    settings: Annotated[dict[str, Any], BeforeValidator(_flat_settings)] = Field(default_factory=dict)
    grid: dict[str, Axis] = Field(default_factory=dict)
    """Axes that take the place of the study's own of the same key."""


class Study(Record):
    """One experiment, and what is varied in it."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")] | None = None
    """Of the study's directory and of its runs in MLflow; null: the file's."""
    size: SizeName | None = None
    """The size that this is the resolved form of."""
    title: str
    claim: str = ""
    """What the study is to check, in a sentence."""
    table: str = ""
    """Table or figure of the paper, for tags and headings."""
    base: FilePath
    """The experiment that all trials start from; relative to the study's file."""
    metric: MetricName = "headline"
    """Which of a run's final metrics the study's table shows: the task's headline (accuracy, for images with one
    label each) after the last round or the best one seen, or one by its name."""
    seeds: Seeds = (0, 1, 2)
    settings: Annotated[dict[str, Any], BeforeValidator(_flat_settings)] = Field(default_factory=dict)
    """Set in every trial."""
    cases: dict[str, Annotated[dict[str, Any], BeforeValidator(_flat_settings)]] = Field(default_factory=dict)
    """Named settings, each a row of the table."""
    grid: dict[str, Axis] = Field(default_factory=dict)
    """Values of a key, all combined: a list, or labels and values. The last key makes the columns of the table."""
    distributions: dict[str, Distribution] = Field(default_factory=dict)
    samples: Annotated[Whole, Field(ge=1, le=MOST_TRIALS)] = 10
    """Draws from the distributions, for each case and combination of the grid."""
    search: Literal["random", "optuna"] = "random"
    """How samples are chosen: drawn beforehand, or by Optuna (a tree-structured Parzen estimator, Bergstra et al. 2011)
    from what earlier ones came to."""
    asha: Asha | None = None
    """null: every trial runs to its end."""
    paper: dict[str, PaperNumbers] = Field(default_factory=dict)
    """The paper's numbers for a row, or for a row and column, in the unit of the table; shown beside it."""
    sizes: dict[SizeName, Size] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _varies_something_sensible(self) -> "Study":
        for key in (*self._keys(), *(key for size in self.sizes.values() for key in (*size.settings, *size.grid))):
            if not re.fullmatch(r"\w+(\.\w+)*", key):
                raise ValueError(f"{key!r} is not a dotted key such as training.learning_rate")
            if key.split(".")[0] in OWN_KEYS:
                raise ValueError(f"{key} is set by the study itself; take it out (seeds are listed under `seeds`)")
        varied = [*self.grid, *self.distributions, *(key for case in self.cases.values() for key in case)]
        for key in varied:
            if key.split(".")[0] in SAME_FOR_ALL:
                raise ValueError(f"{key} is the same for all trials; give it under `settings`")
        both = set(self.grid) & set(self.distributions)
        if both:
            raise ValueError(f"{both.pop()} is in the grid and in the distributions; keep it in one of them")
        if not self.cases and not self.grid and not self.distributions:
            raise ValueError("a study varies something; give cases, a grid or distributions")
        number = len(self.seeds) * max(1, len(self.cases)) * prod(map(len, self.grid.values()))
        number *= self.samples if self.distributions else 1
        if number > MOST_TRIALS:
            raise ValueError(f"the study has {number:,} trials, and a study has at most {MOST_TRIALS:,}; vary less")
        if self.search == "optuna" and (self.cases or self.grid or not self.distributions):
            raise ValueError("search: optuna chooses among distributions alone; take cases and grid out")
        return self

    def _keys(self) -> Sequence[str]:
        return [*self.settings, *(key for case in self.cases.values() for key in case), *self.grid, *self.distributions]

    def at(self, size: SizeName | None) -> "Study":
        """The study in one of its sizes.

        Raises:
            UserError: if it has no such size, or has sizes and none is named.
        """
        if not self.sizes and size is None:
            return self
        if size not in self.sizes:
            known = ", ".join(self.sizes) or "none"
            raise UserError(f"--size is {size or 'missing'}; this study's sizes are: {known}.")
        own = self.sizes[size]
        return self.model_copy(
            update={
                "size": size,
                "base": own.base or self.base,
                "seeds": own.seeds or self.seeds,
                "settings": {**self.settings, **own.settings},
                "grid": {**self.grid, **own.grid},
                "sizes": {},
            }
        )

    def final_metric(self, metrics: Sequence[Metric]) -> str:
        """The name of `metric` among the final metrics of a task with these metrics.

        Raises:
            UserError: if they have none of that name.
        """
        headline = metrics[0]
        name = {"headline": headline.on_test, "best_headline": headline.best}.get(self.metric, self.metric)
        known = [*(metric.on_test for metric in metrics), headline.best, "val_error"]
        if name not in known:
            raise UserError(
                f"metric of the study {self.name} is {self.metric}, and its runs have {', '.join(known)}; set headline "
                "or best_headline."
            )
        return name

    def to_yaml(self) -> str:
        return yaml_file.dump(self.model_dump(mode="json"))


def load_study(path: Path) -> Study:
    """The study of a YAML file, with paths of experiments made absolute.

    Raises:
        UserError: if the file, a key or a value is wrong, in one sentence.
    """
    settings = Settings.from_file(path)
    if "base" not in settings.tree and settings.tree.keys() & configuration.ExperimentConfig.model_fields.keys() - {
        "name"
    }:
        raise UserError(f"{path} holds an experiment, not a study; name it as `base` in a study of your own.")
    study = configuration.validated(Study, settings)
    if (path.parent / study.base).resolve() == path.resolve():
        raise UserError(f"base in {path} names this file itself; give the experiment that all trials start from.")

    def absolute(base: Path | None) -> Path | None:
        return base and (path.parent / base).resolve()

    sizes = {name: size.model_copy(update={"base": absolute(size.base)}) for name, size in study.sizes.items()}
    name = study.name or re.sub(r"[^\w-]+", "_", path.stem)
    return study.model_copy(update={"name": name, "base": absolute(study.base), "sizes": sizes})
