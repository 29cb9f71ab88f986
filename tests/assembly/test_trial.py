"""Jobs try every arm before anything is trained, and before a run leaves a trace."""

import pytest
import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.trial import try_arms
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.settings import experiment as configuration

TINY = {
    "name": "tiny",
    "controls": [],
    "data": {"name": "digits", "num_validation": 100, "split": "fixed"},
    "student": {"name": "resnet8", "norm": "batch"},
    "training": {"num_rounds": 2, "num_steps": 1, "batch_size": 4, "val_batch_size": 4},
    "ray": {"enabled": False},
    "tracking": {"mlflow": False},
}
METHODS = ["l2t_dln", "static_dln", "cross_entropy", "gce", "mw_net", "mentornet", "l2r", "slf", "glc"]


def built(**sections):
    config = configuration.validate(TINY | sections, source="tiny.yaml")
    return config, build_run(config, group=SingleProcess(), device=torch.device("cpu"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_tried(name):
    config, run = built(method={"name": name})
    seen, random = [], torch.get_rng_state()
    run.student.module.register_forward_hook(lambda module, inputs, outputs: seen.append(len(inputs[0])))
    try_arms(run, config)
    assert seen and torch.equal(random, torch.get_rng_state())


def test_a_learning_rate_that_diverges_is_the_arms_own_affair():
    config, run = built(training=TINY["training"] | {"learning_rate": 1e9})
    try_arms(run, config)


def collapsing(monkeypatch):
    """A student whose batch norm sees one value a channel of each image."""
    from torch import nn

    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    monkeypatch.setattr("l2t_ray.assembly.run.build_student", lambda *_, **__: student)


@pytest.mark.parametrize(
    ("sizes", "workers", "sentence"),
    [
        ({"batch_size": 1}, 1, r"training\.batch_size=1 gives a batch norm of student 'resnet8' a single value"),
        ({"val_batch_size": 1}, 1, r"training\.val_batch_size=1 gives a batch norm"),
        ({"batch_size": 3}, 2, r"training\.batch_size=3 over 2 workers gives a batch norm"),
    ],
)
def test_a_share_of_one_image_under_batch_norm_is_refused_in_configuration_keys(monkeypatch, sizes, workers, sentence):
    collapsing(monkeypatch)
    ray = {"enabled": workers > 1, "num_workers": workers}
    config, run = built(training=TINY["training"] | sizes, ray=ray, method={"name": "cross_entropy"})
    with pytest.raises(UserError, match=sentence):
        try_arms(run, config)


def test_a_run_that_cannot_be_trained_leaves_no_directory(monkeypatch, tmp_path):
    collapsing(monkeypatch)
    tree = TINY | {"runs": str(tmp_path), "training": TINY["training"] | {"batch_size": 1}}
    experiment = Experiment.of(configuration.validate(tree, source="tiny.yaml"))
    with pytest.raises(UserError, match="batch norm"):
        experiment.run(quiet=True)
    assert list(tmp_path.iterdir()) == []
