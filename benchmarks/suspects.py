"""Labels that look wrong: the list of a run held against cleanlab's, on labels of which the wrong ones are known.

    python benchmarks/suspects.py --config configs/quick.yaml --seeds 0,1,2
    python benchmarks/suspects.py --config configs/cifar10_noise_small16.yaml data.root=DIR

cleanlab is given what its documentation asks for: probabilities of students under cross-entropy, each of which was
trained without the fold of the training images that it is asked about. Students, schedule and drawn images are those
of the configuration. What was measured before stays, unless it is measured again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from l2t_ray.assembly.run import build_trainee
from l2t_ray.assembly.source import ImageSource
from l2t_ray.assembly.sources import source_of
from l2t_ray.core.student import cross_entropy
from l2t_ray.data.labelled_images import LabelledImages
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "suspects.json"
ALONE = ["ray.enabled=false", "controls=[]", "tracking.mlflow=false", "method={name: recommended}"]
NUM_FOLDS = 5
LOOKED_AT = 2
"""Validation images a round: cross-entropy has no use for more, and their time is not its own."""


class Ranking(NamedTuple):
    """What one contender says of the training images.

    Attributes:
        scores: of each image, in the order of the training part; higher is worse.
        found: which labels it calls wrong.
    """

    scores: Float[np.ndarray, " n"]
    found: Bool[np.ndarray, " n"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", help="of these rows (default: the configuration's)")
    parser.add_argument("--seeds", default="0", help="separated by commas (default: %(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="likewise (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    name = options.name or options.config.stem
    contenders = options.contenders.split(",")
    if unknown := set(contenders) - set(CONTENDERS):
        parser.error(f"no contender is called {min(unknown)!r}; there are {', '.join(CONTENDERS)}.")
    for seed in map(int, options.seeds.split(",")):
        config = configuration.load(options.config, [*ALONE, *options.overrides, f"seed={seed}"])
        source = source_of(config)
        if not isinstance(source, ImageSource) or source.corrupted is None:
            parser.error(f"{options.config} has no labels that are known to be wrong; set data.noise.")
        for contender in contenders:
            began = time.process_time()
            rankings = CONTENDERS[contender](config, source)
            seconds = time.process_time() - began
            for score, ranking in rankings.items():
                measured = {"cpu_seconds": round(seconds, 1), **measures(ranking, source.corrupted.is_wrong)}
                keep(options.out, name, f"{contender} {score}".strip(), seed, measured)
    show(json.loads(options.out.read_text()), Console(stderr=True))


def keep(path: Path, name: str, contender: str, seed: int, measured: dict[str, Any]) -> None:
    """Adds a row to the results, in the place of one of the same contender and seed."""
    rows = json.loads(path.read_text()) if path.exists() else []
    key = {"configuration": name, "contender": contender, "seed": seed}
    rows = [row for row in rows if {part: row[part] for part in key} != key]
    rows.append({**key, **measured, "date": date.today().isoformat(), "command": " ".join(["python", *sys.argv])})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def measures(ranking: Ranking, is_wrong: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """How well the scores rank wrong labels first, how near they are to probabilities, and what is called wrong."""
    scores, num_wrong = ranking.scores, int(is_wrong.sum())
    first = np.argsort(-scores, kind="stable")[:num_wrong]
    hits = int((ranking.found & is_wrong).sum())
    return {
        "auroc": float(roc_auc_score(is_wrong, scores)),
        "average_precision": float(average_precision_score(is_wrong, scores)),
        "precision_at_wrong": float(is_wrong[first].mean()),
        "brier": float(brier_score_loss(is_wrong, scores.clip(0, 1))),
        "found": int(ranking.found.sum()),
        "found_precision": hits / max(1, int(ranking.found.sum())),
        "found_recall": hits / num_wrong,
        "num_wrong": num_wrong,
        "num_labels": len(is_wrong),
    }


def of_run(config: ExperimentConfig, source: ImageSource) -> dict[str, Ranking]:
    """The list that a run of the configuration's method leaves behind."""
    with tempfile.TemporaryDirectory() as runs:
        named = config.model_copy(update={"name": "suspects", "runs": Path(runs)})
        found = Experiment.of(named).run(quiet=True, figures=False).suspects[config.method.arm]
    rows = np.searchsorted(np.sort(source.split(0).train), found.places.numpy())
    scores, differs = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
    scores[rows], differs[rows] = found.scores.nan_to_num(0.0).numpy(), found.differs.numpy()
    return {"": Ranking(scores, differs)}


def of_cleanlab(
    config: ExperimentConfig, source: ImageSource, *, has_clean: bool = False, budget: float = NUM_FOLDS
) -> dict[str, Ranking]:
    """cleanlab's scores of the labels, by out-of-fold probabilities.

    Args:
        has_clean: the validation images, with their clean labels, are trained on as well.
        budget: steps of all folds together, in steps of the configuration.
    """
    rounds = max(1, round(config.training.num_rounds * budget / NUM_FOLDS))
    training = config.training.model_copy(update={"num_rounds": rounds})
    config = config.model_copy(update={"training": training})
    rows = np.sort(source.split(0).train)
    labels = source.labels().observed[rows]
    fold = np.random.default_rng(config.seed).permutation(len(rows)) % NUM_FOLDS
    probabilities = np.empty((len(rows), source.dataset.num_classes))
    for held in range(NUM_FOLDS):
        split = Split(rows[fold != held], rows[fold == held])
        probabilities[fold == held] = answers(config, source, split, has_clean=has_clean)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    return {
        method: Ranking(1 - get_label_quality_scores(labels, probabilities, method=method), issues)
        for method in ("self_confidence", "normalized_margin")
    }


def answers(
    config: ExperimentConfig, source: ImageSource, split: Split, *, has_clean: bool
) -> Float[np.ndarray, "n c"]:
    """What a student under cross-entropy, trained on one part of the images, says of the other."""
    trainee = build_trainee(config, source, SingleProcess())
    method, data = FixedLoss(trainee, cross_entropy), batches(config, source, split, has_clean=has_clean)
    state = method.init()
    for index in range(config.training.num_rounds):
        state, _ = method.round(state, data.round(index), index)
    with torch.no_grad():
        said = [
            trainee.seen_rows(state.student, batch).logits.softmax(dim=1) for batch in source.images(split.validation)
        ]
    return torch.cat(said).double().numpy()


def batches(config: ExperimentConfig, source: ImageSource, split: Split, *, has_clean: bool) -> RoundLoader:
    labels, dataset, training = source.labels(), source.dataset, config.training
    taught: Int[np.ndarray, " images"] = labels.observed
    if has_clean:
        taught = np.where(labels.is_validation, labels.validation, taught)
        split = split._replace(train=np.sort(np.concatenate((split.train, source.split(0).validation))))
    images = LabelledImages(
        dataset.train.images,
        taught,
        mean=dataset.mean,
        std=dataset.std,
        augment=config.data.augment,
        padding_mode=config.data.crop_padding,
    )
    sampler = RoundSampler(
        Policy(lambda epoch: split, lasts=None),
        seed=config.seed,
        num_steps=training.num_steps,
        train_batch=training.batch_size,
        val_batch=LOOKED_AT,
    )
    return RoundLoader(images, images, images, sampler, seed=config.seed, num_classes=dataset.num_classes)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Means over seeds."""
    columns = ("auroc", "average_precision", "precision_at_wrong", "brier", "found_precision", "found_recall")
    table = Table("configuration", "contender", "seeds", *columns, "CPU s")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["configuration"], row["contender"]), []).append(row)
    for key, of in sorted(groups.items()):
        means = (f"{np.mean([row[column] for row in of]):.3f}" for column in columns)
        table.add_row(*key, str(len(of)), *means, f"{np.mean([row['cpu_seconds'] for row in of]):.0f}")
    console.print(table)


CONTENDERS: dict[str, Callable[[ExperimentConfig, ImageSource], dict[str, Ranking]]] = {
    "suspects": of_run,
    "cleanlab": of_cleanlab,
    "cleanlab-clean": partial(of_cleanlab, has_clean=True),
    "cleanlab-short": partial(of_cleanlab, budget=1),
}


if __name__ == "__main__":
    main()
