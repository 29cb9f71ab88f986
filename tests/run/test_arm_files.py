"""Each method's student is left in the run directory, and loads from there."""

import csv
import shutil

import numpy as np
import pytest
import torch

import l2t_ray
from l2t_ray.assembly.trained import Predictions
from l2t_ray.data.arrow import ImageSet
from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment
from l2t_ray.run.arm_files import arm_file, write_predictions


def test_each_arm_leaves_its_model(whole):
    assert {path.name for path in whole.glob("model*")} == {"model.safetensors", "model-cross_entropy.safetensors"}
    arms = {arm: l2t_ray.load_model(whole, arm=arm) for arm in ("cross_entropy", "l2t_dln")}
    assert l2t_ray.load_model(whole).card == arms["l2t_dln"].card
    assert {arm: model.card.arm for arm, model in arms.items()} == {arm: arm for arm in arms}
    pixels = arms["l2t_dln"].preprocess(np.zeros((1, 8, 8), dtype=np.uint8))
    assert not arms["l2t_dln"](pixels).equal(arms["cross_entropy"](pixels))
    file = whole / "model-cross_entropy.safetensors"
    assert l2t_ray.load_model(file)(pixels).equal(arms["cross_entropy"](pixels))


def test_an_arm_or_a_run_without_a_model_is_said_in_a_sentence(whole, tmp_path):
    with pytest.raises(UserError, match=r"holds the models of cross_entropy, l2t_dln, and there is none of arm 'elr'"):
        l2t_ray.load_model(whole, arm="elr")
    with pytest.raises(UserError, match=r"is the model of l2t_dln, not of elr"):
        l2t_ray.load_model(whole / "model.safetensors", arm="elr")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"holds no trained model: the run is not finished, .* --resume "):
        l2t_ray.load_model(tmp_path)


def test_a_finished_run_without_a_model_gets_it_by_resuming(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "x")
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"the method itself has none; give arm="):
        l2t_ray.load_model(run)
    Experiment.resume(run).run(quiet=True, figures=False)
    ours, theirs = (l2t_ray.load_model(where).state_dict() for where in (run, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_predictions_have_the_published_number_and_class_names(tmp_path):
    images = ImageSet(
        np.zeros((2, 1, 2, 2), dtype=np.uint8),
        np.array([0, 1]),
        np.array([0, 5]),
        ("cat", "dog, small"),
        names=["a", "b"],
    )
    write_predictions(tmp_path / "x.csv", Predictions(np.array([1, 1]), np.array([0.5, 0.75])), images)
    with (tmp_path / "x.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [
        {"index": "0", "image": "a", "label": "cat", "prediction": "dog, small", "probability": "0.500000"},
        {"index": "5", "image": "b", "label": "dog, small", "prediction": "dog, small", "probability": "0.750000"},
    ]


OWN = """
import numpy as np
import torch
from l2t_ray.data.example_sets import ExampleDataset, ExampleSet

def measured():
    labels = np.arange(60) % 2
    inputs = np.eye(2, dtype=np.float32)[labels] + 0.1
    parts = [ExampleSet.of(inputs[rows], labels[rows], ("low", "high")) for rows in (slice(40), slice(40, None))]
    return ExampleDataset("measured", *parts)

def linear(num_classes: int, bias: bool = True):
    return torch.nn.Linear(2, num_classes, bias)
"""


def test_labelled_examples_of_ones_own_leave_a_model_and_predictions(tmp_path, monkeypatch):
    (tmp_path / "measurements.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "x.yaml").write_text(
        "{data: {name: 'measurements:measured', num_validation: 20}, student: {name: 'measurements:linear'},"
        " task: 'l2t_ray.tasks.classification:Classification', method: gce, controls: [], name: x,"
        " training: {num_rounds: 2, num_steps: 5, batch_size: 10, val_batch_size: 10},"
        " ray: {enabled: false}, tracking: {mlflow: false}}"
    )
    run = Experiment.from_yaml("x.yaml").run(quiet=True).directory
    model = l2t_ray.load_model(run, student=lambda num_classes, bias: torch.nn.Linear(2, num_classes, bias))
    said = model(torch.eye(2) + 0.1).argmax(dim=1).tolist()
    with (run / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == ["low", "high"] * 10
    assert [line["prediction"] for line in lines] == [("low", "high")[said[i % 2]] for i in range(20)]


def test_a_controls_file_has_its_name():
    assert arm_file("model.safetensors", "elr", is_method=False) == "model-elr.safetensors"
    assert arm_file("predictions.csv", "x", is_method=True) == "predictions.csv"
