"""A combination of a task's own loss terms is learned through a configuration, from first weights to file."""

import pytest
import torch
from test_segmentation_job import scenes

from l2t_ray.assembly.run import build_run, first_teacher
from l2t_ray.assembly.trial import try_arms
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.settings.experiment import validate
from l2t_ray.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
TERMS = {"name": "l2t_dln", "loss": {"name": "terms", "pieces": 2}, "teacher": {"name": "adam", "step_size": 0.02}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = scenes(method=TERMS, controls=[], tracking={"mlflow": False})
    directory = tmp_path_factory.mktemp("runs")
    config = config.model_copy(update={"runs": directory, "name": "terms"})
    experiment = Experiment(config, directory / "terms")
    return experiment, experiment.run(quiet=True)


def test_it_is_learned_and_leaves_a_file_that_a_plain_loop_trains_with(finished):
    _, result = finished
    learned = LearnedLoss.load(result.directory / "loss.safetensors")
    assert isinstance(learned.family, TermLoss) and learned.phi.abs().max() > 1e-3
    assert set(learned.family.kinds) == {"cross_entropy", "jaccard"}
    learned.family.check(Segmentation(learned.family.kinds["cross_entropy"]))
    losses = torch.rand(11, requires_grad=True)
    learned({"cross_entropy": (losses, torch.arange(11)), "jaccard": torch.rand(2)}).backward()
    assert losses.grad is not None and losses.grad.min() > 0
    assert "| cross_entropy | background |" in (result.directory / "loss.md").read_text()
    assert list((result.directory / "figures").glob("*weights*"))


def test_what_each_class_counts_is_counted_in_the_training_masks(finished):
    _, result = finished
    learned = LearnedLoss.load(result.directory / "loss.safetensors")
    shares = dict(zip(learned.family.kinds["cross_entropy"], learned.family.spec.shares["cross_entropy"], strict=True))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4) and shares["background"] > 0.5
    assert sum(learned.family.spec.shares["jaccard"]) == pytest.approx(1, abs=1e-4)  # as much as all of cross-entropy


def test_the_central_teacher_begins_as_a_workers_own_does():
    config = scenes(method=TERMS, controls=[])
    central = first_teacher(config, 11).read().phi
    (arm,) = build_run(config, group=SingleProcess(), device=CPU).arms
    assert torch.equal(central, arm.teacher.read().phi) and len(central) == 11 + 1 + 2 + 2


def test_without_a_teacher_it_stays_the_tasks_own_loss():
    config = scenes(method={"name": "static_dln", "loss": "terms"}, controls=[])
    (arm,) = build_run(config, group=SingleProcess(), device=CPU).arms
    assert arm.teacher is None
    assert not arm.method.learned_loss(arm.method.init()).any()


def test_a_task_without_terms_is_refused():
    config = validate(
        {"method": {"name": "l2t_dln", "loss": "terms"}, "controls": [], "ray": {"enabled": False}}, source="a test"
    )
    with pytest.raises(UserError, match="needs a task that has some, and classification has none"):
        try_arms(build_run(config, group=SingleProcess(), device=CPU), config)


def test_the_recommended_method_has_its_own_loss():
    with pytest.raises(UserError, match=r"method\.loss in a test: input should be 'pairs', got 'terms'"):
        validate({"method": {"name": "recommended", "loss": "terms"}}, source="a test")
