"""The same settings train the same through `fit` and through a job, to the last bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from l2t_ray.assembly.fit import fit
from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.students import build_student
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.data import catalog
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate

TRAINING = {
    "num_rounds": 12,
    "num_steps": 3,
    "batch_size": 20,
    "val_batch_size": 25,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-3,
}
METHODS = {
    "recommended": {"name": "recommended"},
    "the paper's network": {
        "name": "l2t_dln",
        "loss": {"hidden": 6},
        "teacher": {"name": "lstm", "cells": [4]},
    },
    "fine-tuned": {"name": "gce", "clean_images": "fine_tuned"},
}
FOLLOWED = ("train_loss", "val_error", "hypergradient_norm", "memory_weight", "phi_step_norm")


@pytest.fixture
def digits(monkeypatch):
    """Of a few digits the last hundred were set apart as clean, as validation images are that people bring."""
    whole = catalog.load("digits", root=Path("data"))
    few = whole.train
    rows = np.arange(300)
    train = replace(few, images=few.images[rows], labels=few.labels[rows], positions=few.positions[rows])
    dataset = replace(whole, train=train, validation=np.arange(200, 300))
    monkeypatch.setattr("l2t_ray.assembly.sources.open_dataset", lambda data: dataset)


ADAMW = {"learning_rate": 0.002, "momentum": 0.0}, {"betas": (0.8, 0.99), "eps_root": 1e-8, "clip": 0.5}
HALF = "bfloat16", "bf16"


@pytest.mark.parametrize(
    ("name", "optimizer", "numbers", "of_steps", "precision"),
    [
        *((name, "sgd", {}, {}, ("float32", None)) for name in METHODS),
        ("recommended", "adamw", *ADAMW, ("float32", None)),
        ("recommended", "sgd", {}, {}, HALF),
    ],
)
def test_fit_and_a_job_with_the_same_settings_are_one_training(name, optimizer, numbers, of_steps, precision, digits):
    training = TRAINING | numbers
    config = validate(
        {
            "seed": 3,
            "data": {"name": "digits", "augment": "none", "noise": {"kind": "flip_to_two", "rate": 0.4}},
            "student": {"name": "resnet8", "norm": "batch"},
            "training": training | of_steps | {"decay": "cosine", "optimizer": optimizer, "precision": precision[0]},
            "method": METHODS[name],
            "controls": [],
            "ray": {"enabled": False},
        },
        source="a test",
    )
    source = source_of(config)
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    rows: list[dict] = []
    end = run.train(start=None, store=None, on_row=rows.append)

    split, labels, loader = source.split(0), source.labels(), source.plain()

    def tensors(part, given):
        return torch.cat([batch.inputs for batch in loader.training_images(part)]), torch.from_numpy(given[part])

    fitted = fit(
        build_student(config.student, source.dataset, group=SingleProcess(), seed=config.seed),
        train=tensors(split.train, labels.observed),
        validation=tensors(split.validation, labels.validation),
        method=METHODS[name],
        seed=config.seed,
        **training,
        optimizer={"name": optimizer} | of_steps,
        precision=precision[1],
    )
    assert len(fitted.rows) == len(rows) == 12
    for own, other in zip(fitted.rows, rows, strict=True):
        for key in FOLLOWED:
            assert own.get(key) == other.get(key), (own["round"], key)
    run.student.load(end.state.student.theta, end.state.student.buffers)
    for key, value in run.student.module.state_dict().items():
        assert torch.equal(fitted.model.state_dict()[key], value), key
    listed = suspects_of(config.method, end, source)
    assert (fitted.suspected is None) == (listed is None) == (name == "fine-tuned" or "paper" in name)
    if listed is not None and fitted.suspected is not None:
        assert torch.equal(torch.from_numpy(split.train)[fitted.suspected.places], listed.places)
        assert torch.equal(fitted.suspected.scores, listed.scores)
        assert torch.equal(fitted.suspected.suggested, listed.suggested)
