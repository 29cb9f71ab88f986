"""Files of a run directory that each method of the run may have: its student, and what that says of the test images."""

import csv
from pathlib import Path

from l2t_ray.assembly.sources import AnySource
from l2t_ray.assembly.trained import Predictions
from l2t_ray.assembly.trained_model import MODEL, card_of, write_model
from l2t_ray.core.student import Trainee
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.boxed_sets import BoxedDataset
from l2t_ray.data.example_sets import ExampleSet
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.training.checkpoint import Checkpoint

PREDICTIONS = "predictions.csv"
PREDICTION_FILES = "predictions*.csv"


def arm_file(name: str, arm: str, *, is_method: bool) -> str:
    """The method's own file has the plain name; those of the methods beside it have theirs in it (`model-elr...`)."""
    stem, _, suffix = name.partition(".")
    return name if is_method else f"{stem}-{arm}.{suffix}"


def write_models(
    config: ExperimentConfig, source: AnySource, trainee: Trainee, folder: Path, checkpoint: Checkpoint
) -> None:
    """The student of each arm at its end: the trainee's own module, given these weights. An arm that diverged has none.

    Raises:
        OSError: if one cannot be written.
    """
    dataset = source.dataset
    section = config.student.model_dump(mode="json", include={"name", *config.student.options()})
    for arm, state in checkpoint.finished.items():
        card = card_of(
            dataset,
            arm=arm,
            task=trainee.task.name,
            student=section,
            resized=config.data.image_size,
            frame=config.data.boxes.size if isinstance(dataset, BoxedDataset) else None,
        )
        name = arm_file(MODEL, arm, is_method=arm == config.method.arm)
        write_model(folder / name, trainee.student.load(state.theta, state.buffers), card)


def written_models(config: ExperimentConfig, directory: Path) -> dict[str, Path]:
    """The models that are in a run directory, by arm."""
    files = {arm: directory / arm_file(MODEL, arm, is_method=arm == config.method.arm) for arm in config.arms()}
    return {arm: path for arm, path in files.items() if path.is_file()}


def write_predictions(path: Path, predicted: Predictions, images: ImageSet | ExampleSet) -> None:
    """Writes a line for each test example, in order: `index`, `image` where images have names, `label`, `prediction`,
    and the `probability` of that. `index` is the example's place in the set as published; labels are class names."""
    names, classes, labels = images.names, images.class_names, images.labels
    assert labels is not None
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["index", *(["image"] if names is not None else []), "label", "prediction", "probability"])
        for row, (label, said, probability) in enumerate(
            zip(labels.tolist(), predicted.classes.tolist(), predicted.probabilities.tolist(), strict=True)
        ):
            name = [names[row]] if names is not None else []
            lines.writerow([images.positions[row], *name, classes[label], classes[said], f"{probability:.6f}"])
