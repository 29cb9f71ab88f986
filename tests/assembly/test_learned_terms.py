"""A combination of a task's own loss terms is learned through a configuration, from first weights to file."""

import pytest
import torch
from test_segmentation_job import scenes

from l2t_ray.assembly.run import build_run, build_trainee, first_teacher
from l2t_ray.assembly.sources import source_of
from l2t_ray.assembly.tasks import build_task
from l2t_ray.assembly.trial import try_arms
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import UserError
from l2t_ray.methods.parts import LossFacts
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


def losses_of_a_wider_student(learned):
    """Of a plain loop, on larger crops than those that the loss was learned on."""
    data = scenes().data.model_dump() | {"masks": {"crop": 40, "pixels": 100}}
    config = scenes(data=data, student={"name": "pspnet", "width": 12, "auxiliary": False})
    trainee = build_trainee(config, source_of(config), SingleProcess())
    student, (batch, _) = trainee.student.module.train(), source_of(config).plain().round(0).train
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.1), []
    for _ in range(5):
        optimizer.zero_grad()
        logits = student(batch.inputs)
        is_of_masks = isinstance(learned.family, SoftMetricLoss)
        loss = learned(logits, batch.targets["mask"]) if is_of_masks else learned(trainee.task.terms(logits, batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_combination_of_terms_trains_a_wider_student_on_larger_crops(finished):
    losses = losses_of_a_wider_student(LearnedLoss.load(finished[1].directory / "loss.safetensors"))
    assert losses[-1] < 0.8 * losses[0]


def test_curves_inside_a_metric_train_a_wider_student_on_larger_crops(tmp_path):
    config = scenes(method=TERMS | {"loss": "soft_metric"}, controls=[])
    (arm,) = build_run(config, group=SingleProcess(), device=CPU).arms
    state, _ = arm.method.round(arm.method.init(), arm.data.round(0), 0)
    phi = arm.method.learned_loss(state)
    LearnedLoss(config.method.first_loss(LossFacts(build_task(config), 11, 0)), phi).save(tmp_path / "loss.safetensors")
    learned = LearnedLoss.load(tmp_path / "loss.safetensors", task=build_task(config), num_classes=11)
    losses = losses_of_a_wider_student(learned)
    assert phi.any() and losses[-1] < 0.8 * losses[0]


def test_curves_inside_a_metric_are_learned_for_masks_alone():
    config = scenes(method=TERMS | {"loss": {"name": "soft_metric", "pieces": 3}}, controls=[])
    arm = build_run(config, group=SingleProcess(), device=CPU).arms[0]
    assert len(arm.teacher.read().phi) == len(first_teacher(config, 11).read().phi) == 11 + 1 + 2 * 3
    joined = config.data.model_dump() | {"masks": config.data.masks.model_dump() | {"auxiliary": "same"}}
    for sections, sentence in (
        (
            {"data": {"name": "digits"}, "student": "resnet8"},
            "loss soft_metric is for images with masks, .* classification",
        ),
        ({"data": joined}, r"data\.masks\.auxiliary is 'same', .* a soft metric is of all rows together"),
    ):
        other = scenes(method=TERMS | {"loss": "soft_metric"}, controls=[], **sections)
        with pytest.raises(UserError, match=sentence):
            try_arms(build_run(other, group=SingleProcess(), device=CPU), other)


def test_an_auxiliary_head_learns_under_the_learned_loss_where_it_is_asked_for():
    def loss_after_a_round(**masks):
        data = scenes().data.model_dump()
        config = scenes(method=TERMS, controls=[], data=data | {"masks": data["masks"] | masks})
        (arm,) = build_run(config, group=SingleProcess(), device=CPU).arms
        return arm.method.round(arm.method.init(), arm.data.round(0), 0)[1]["train_loss"]

    alone, both = loss_after_a_round(), loss_after_a_round(auxiliary="same")
    assert both > alone  # an overlap that is lost, too
    assert loss_after_a_round(auxiliary="same", auxiliary_weight=0) < alone


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
