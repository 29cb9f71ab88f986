"""The list of labels that look wrong, as a file of a run directory."""

import csv
from pathlib import Path

from l2t_ray.core.suspects import Suspects
from l2t_ray.data.arrow import ImageSet
from l2t_ray.data.example_sets import ExampleSet
from l2t_ray.run.arm_files import arm_file

SUSPECTS = "suspects.csv"
PATTERN = "suspects*.csv"


def file_name(arm: str, *, is_method: bool) -> str:
    """The method's own list is `suspects.csv`; those of the methods beside it carry their names."""
    return arm_file(SUSPECTS, arm, is_method=is_method)


def write_suspects(path: Path, found: Suspects, images: ImageSet | ExampleSet) -> None:
    """Writes a line for each training image, the most suspicious first: `index`, `image` where images have names,
    `given_label`, `suggested_label`, `score` (empty: never seen).

    `index` is the image's place in the set as published, by which files of labels number images too; labels are
    class names.
    """
    names, classes = images.names, images.class_names
    columns = zip(
        *(column.tolist() for column in (found.places, found.given, found.suggested, found.scores)), strict=True
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["index", *(["image"] if names is not None else []), "given_label", "suggested_label", "score"])
        for row, given, suggested, score in columns:
            name = [names[row]] if names is not None else []
            shown = "" if score != score else f"{score:.6g}"  # small ones differ too
            lines.writerow([images.positions[row], *name, classes[given], classes[suggested], shown])
