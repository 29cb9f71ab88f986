"""What a finished run leaves behind: tables, figures, and the learned loss."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from l2t_ray.assembly.boxed import BoxedSource
from l2t_ray.assembly.run import build_trainee, resolve_device
from l2t_ray.assembly.source import CorruptedLabels
from l2t_ray.assembly.sources import AnySource, source_of
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.assembly.trained import Inspected, Inspection, inspect_students
from l2t_ray.assembly.trained_model import PATTERN as MODELS
from l2t_ray.core.loss.family import LossPicture
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.student import Trainee
from l2t_ray.core.suspects import Suspects
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.checked import AnyDataset
from l2t_ray.data.example_sets import ExampleSet
from l2t_ray.files import PUBLIC, write_whole
from l2t_ray.headline import HEADLINE
from l2t_ray.interfaces import Metric, UserError
from l2t_ray.methods.parts import LossFacts, Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run.arm_files import PREDICTION_FILES, PREDICTIONS, arm_file, write_models, write_predictions
from l2t_ray.run.loss_card import loss_card
from l2t_ray.run.suspects_file import PATTERN as SUSPECT_FILES
from l2t_ray.run.suspects_file import file_name, write_suspects
from l2t_ray.run.written import FINISHED
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.metrics import write_rows
from l2t_ray.training.checkpoint import Checkpoint

IMBALANCE = "imbalance.json"
ARTIFACTS = (
    *("config.yaml", "confusion.npz", "figures", "loss.md", "loss.safetensors"),
    *("metrics.parquet", MODELS, "noise.json", IMBALANCE, PREDICTION_FILES, SUSPECT_FILES, FINISHED),
)
"""What tracking gets of a run directory, as patterns: everything but checkpoints."""
SHOWN_SUSPECTS = 16


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    directory: Path
    summaries: list[dict[str, Any]]
    loss: LearnedLoss | None
    suspects: Mapping[str, Suspects] = field(default_factory=dict)
    """By arm, of those that can say which labels look wrong."""


def write_results(config: ExperimentConfig, directory: Path, checkpoint: Checkpoint, *, figures: bool) -> Result:
    """Everything but checkpoints and configuration, from the last checkpoint. Each file is there whole or not at all,
    and the summary, which says that the run is finished, comes last.

    Raises:
        UserError: if it cannot be written; the checkpoints hold everything.
    """
    unfinished = directory / ".results"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
        unfinished.mkdir()
        result = _write(config, directory, unfinished, checkpoint, figures=figures)
        _move(unfinished, directory)
        write_whole(directory / FINISHED, json.dumps(result.summaries, indent=1), mode=PUBLIC)
        return result
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"cannot write the results to {directory}: {reason}; the checkpoints hold everything: free space, "
            f"then --resume {directory}."
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(config: ExperimentConfig, directory: Path, folder: Path, checkpoint: Checkpoint, *, figures: bool) -> Result:
    write_rows(folder / "metrics.parquet", checkpoint.rows)
    source = source_of(config, device=resolve_device(config))
    trainee = build_trainee(config, source, SingleProcess())
    inspected = inspect_students(trainee, source, checkpoint.finished) if figures else Inspected()
    metrics = trainee.task.metrics
    summaries = [_summary(name, checkpoint, inspected.students, metrics) for name in config.arms()]
    loss, moments = None, []
    facts = _loss_facts(config, source, trainee)
    for round_index, phi in sorted(checkpoint.snapshots.get(config.method.arm, {}).items()):
        loss = config.method.learned_loss(phi, facts)
        if loss is None or not loss.is_kept:
            break
        moments.append((f"round {round_index}", loss.pictures()))
    if loss is not None and loss.is_kept:
        own_rows = [row for row in checkpoint.rows if row["arm"] == config.method.arm]
        loss.save(folder / "loss.safetensors")
        (folder / "loss.md").write_text(loss_card(config, loss, summaries, own_rows))
    if config.data.imbalance.kind != "none":
        (folder / IMBALANCE).write_text(json.dumps(_imbalance(config, source), indent=1))
    write_models(config, source, trainee, folder, checkpoint)
    test = source.dataset.test
    for arm, inspection in inspected.students.items():
        if inspection.predicted is not None and isinstance(test, ImageSet | ExampleSet) and test.labels is not None:
            name = arm_file(PREDICTIONS, arm, is_method=arm == config.method.arm)
            write_predictions(folder / name, inspection.predicted, test)
    found = _write_suspects(config, source, folder, checkpoint)
    if figures:
        _write_figures(
            config, source, folder, checkpoint, inspected, moments, found.get(config.method.arm), headline=metrics[0]
        )
    return Result(directory, summaries, loss, found)


def _loss_facts(config: ExperimentConfig, source: AnySource, trainee: Trainee) -> LossFacts:
    parts = Parts(trainee, source, config.training.num_rounds, config.seed)
    return replace(parts, sample=cache(parts.term_sample)).loss_facts


def _write_suspects(
    config: ExperimentConfig, source: AnySource, folder: Path, checkpoint: Checkpoint
) -> dict[str, Suspects]:
    """A list for each arm that remembers what its student said of its images."""
    found, train = {}, source.dataset.train
    if not isinstance(train, ImageSet | ExampleSet):
        return found  # there is more than one label an image
    for arm, method in config.arms().items():
        suspected = suspects_of(method, checkpoint, source)
        if suspected is not None:
            found[arm] = suspected
            path = folder / file_name(arm, is_method=arm == config.method.arm)
            write_suspects(path, suspected, train)
    return found


def _write_figures(
    config: ExperimentConfig,
    source: AnySource,
    folder: Path,
    checkpoint: Checkpoint,
    inspected: Inspected,
    moments: Sequence[tuple[str, Sequence[LossPicture]]],
    found: Suspects | None,
    *,
    headline: Metric,
) -> None:
    # matplotlib takes a second to import, at the start
    from l2t_ray.reports.answers import answer_figures
    from l2t_ray.reports.figures import write_figures
    from l2t_ray.reports.gallery import gallery
    from l2t_ray.reports.loss_figures import loss_figures
    from l2t_ray.reports.sheets import Sheet

    students, class_names = inspected.students, source.dataset.train.class_names
    confusions = {arm: said.confusion for arm, said in students.items() if said.confusion is not None}
    np.savez(folder / "confusion.npz", allow_pickle=False, **confusions)
    noise = _write_noise(config, source, folder)
    sheet = Sheet(
        inspected.images,
        inspected.truths,
        {arm: said.answers for arm, said in students.items()},
        class_names,
        learned=config.method.arm,
    )
    own_rows = [row for row in checkpoint.rows if row["arm"] == config.method.arm]
    drawn = answer_figures(sheet, {arm: said.charts for arm, said in students.items()})
    drawn |= loss_figures(moments, own_rows, class_names)
    train = source.dataset.train
    if found is not None and found.differs.any() and isinstance(train, ImageSet):
        worst = found.differs.nonzero()[:SHOWN_SUSPECTS, 0]
        names = train.class_names
        captions = [
            (f"given: {names[given]}", f"suggested: {names[said]}")
            for given, said in zip(found.given[worst].tolist(), found.suggested[worst].tolist(), strict=True)
        ]
        title = f"Another class is suggested: the {len(worst)} most suspicious labels"
        drawn["suspects"] = gallery(train.images[found.places[worst].numpy()], captions, title)
    write_figures(
        folder,
        checkpoint.rows,
        drawn,
        confusions=confusions,
        noise=[] if noise is None else [("drawn from", noise.matrix), ("realised", noise.realised)],
        class_names=class_names,
        headline=headline,
    )


def _move(folder: Path, target: Path) -> None:
    """Puts every file into place, in place of one of the same name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)


def _summary(
    arm: str, checkpoint: Checkpoint, inspections: Mapping[str, Inspection], metrics: Sequence[Metric]
) -> dict[str, Any]:
    inspection = inspections.get(arm)
    summary = summarise(arm, checkpoint.rows, metrics, diverged=arm in checkpoint.diverged)
    return summary | {"reproduced": None if inspection is None else inspection.memorised}


def summarise(
    arm: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric] = Classification.metrics,
    *,
    diverged: bool = False,
) -> dict[str, Any]:
    """The final metrics of an arm. Final means the last round; the best one seen is only for comparison.

    An arm that diverged has no final ones: its last round was never over.

    Args:
        metrics: of the task; the first is the headline.
    """
    own = [row for row in rows if row["arm"] == arm]
    last = {} if diverged else own[-1]
    headline, *others = metrics
    return {
        "arm": arm,
        "rounds": len(own),
        "steps": own[-1]["step"] if own else 0,
        HEADLINE: headline.name,
        headline.on_test: last.get(headline.on_test),
        headline.best: _where_best(own, headline, headline.on_test),
        headline.selected: _where_best(own, headline, headline.on_validation),
        **{metric.on_test: last.get(metric.on_test) for metric in others},
        "val_error": last.get("val_error"),
        "seconds": sum(row["seconds"] for row in own),
        "diverged": diverged,
    }


def _where_best(rows: Sequence[Mapping[str, Any]], headline: Metric, criterion: str) -> float | None:
    """The headline on the test set where the column `criterion` is best, the first of equals. By the column on the
    validation part that is a choice without the test set."""
    evaluated = [row for row in rows if row.get(criterion) is not None]
    best = max if headline.higher_is_better else min
    return best(evaluated, key=lambda row: row[criterion])[headline.on_test] if evaluated else None


def final_row(summary: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The final metrics as a row for tracking: `final/<name>` of the method, `final/<arm>/<name>` of a control."""
    numbers = {name: float(value) for name, value in summary.items() if isinstance(value, float | int | bool)}
    arm = "final" if summary["arm"] == method else f"final/{summary['arm']}"
    return {"arm": arm, "round": summary["rounds"], **numbers}


def noise_facts(config: ExperimentConfig) -> dict[str, Any]:
    """The noise and the imbalance that the training images really have, for tracking."""
    source = source_of(config)
    facts, noise = {}, source.corrupted
    if config.data.imbalance.kind != "none":
        facts["imbalance.images"] = str(_imbalance(config, source)["images"])
    if isinstance(source, BoxedSource) and (hit := source.hit_by_class()):
        return facts | {"noise.realised_rate": round(_rate(hit), 5), "noise.seed": config.seed}
    if noise is None:
        return facts
    return facts | {
        "noise.realised_rate": round(noise.rate, 5),
        "noise.num_images": len(noise.rows),
        "noise.seed": config.seed,
        "noise.realised_matrix": np.array2string(noise.realised, precision=2, suppress_small=True, threshold=400),
    }


def _imbalance(config: ExperimentConfig, source: AnySource) -> dict[str, Any]:
    """The training images that have each class, and how many are labelled so."""
    names, rows = list(source.dataset.train.class_names), source.split(0).train
    images, labelled = (np.bincount(classes, minlength=len(names)) for classes in _true_and_observed(source, rows))
    setting = config.data.imbalance
    return {
        "kind": setting.kind,
        "factor": setting.factor,
        "of": setting.of,
        "realised_factor": float(images.max() / max(1, images.min())),
        "seed": config.seed,
        "num_images": len(rows),
        "class_names": names,
        "images": images.tolist(),
        "labelled": labelled.tolist(),
        "validation": protocol(config, source.dataset),
    }


def _true_and_observed(source: AnySource, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of each of these images, or each class that it has a box of; and what is taught."""
    if isinstance(source, BoxedSource):
        boxes = source.dataset.train.boxes
        observed = boxes if source.noisy is None else source.noisy.boxes
        true, taught = (np.concatenate([np.unique(own[row].labels) for row in rows]) for own in (boxes, observed))
        return true, taught
    train = source.dataset.train
    assert isinstance(train, ImageSet | ExampleSet) and train.labels is not None  # others can have no imbalance
    return train.labels[rows], source.labels().observed[rows]


def _rate(hit: Mapping[str, tuple[int, int]]) -> float:
    """The share of boxes that were hit."""
    return sum(count for count, _ in hit.values()) / max(1, sum(number for _, number in hit.values()))


def _write_noise(config: ExperimentConfig, source: AnySource, folder: Path) -> CorruptedLabels | None:
    if isinstance(source, BoxedSource) and (hit := source.hit_by_class()):
        own = config.data.noise.model_dump(mode="json", include={"kind", "rate", "strength"})
        facts = {**own, "seed": config.seed, "realised_rate": _rate(hit), "hit_and_all_by_class": hit}
        (folder / "noise.json").write_text(json.dumps(facts, indent=1))
    dataset, noise = source.dataset, source.corrupted
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
        (folder / "noise.json").write_text(json.dumps(facts, indent=1))
    return noise


def protocol(config: ExperimentConfig, dataset: AnyDataset) -> str:
    """What is validated on, in words: how many images, whose labels, and whether clean labels leak into training."""
    data = config.data
    if dataset.validation is not None:
        return f"the {len(dataset.validation):,} images that were set apart"
    what = f"{data.split} {data.num_validation:,} with {data.validation_labels} labels"
    leaks = data.split == "redivide" and data.validation_labels == "clean" and data.noise.kind != "none"
    return f"{what} (leaks clean labels: every image is validated on sooner or later)" if leaks else what
