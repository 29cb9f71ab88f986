"""Losses of files: trained under as they are, averaged where there are several, refused where that means nothing."""

import pytest
import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.core.loss.adjusted import AdjustedLoss, AdjustedSpec
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import LossNetworkSpec
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss, SoftMetricSpec
from l2t_ray.interfaces import UserError
from l2t_ray.methods.frozen_loss import read_mean
from l2t_ray.methods.parts import LossFacts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

FACTS = LossFacts(Classification(), 10, seed=0)
SOFT_METRIC = SoftMetricLoss(SoftMetricSpec(("a", "b"), (1.0, 1.0), 2))


def shifts(path, value):
    """A file of a loss that shifts the first class's logit."""
    family = AdjustedLoss(AdjustedSpec(shifts=(0.0,) * 10))
    phi = torch.zeros_like(family.phi)
    phi[0] = value
    LearnedLoss(family, phi).save(path)
    return path


def run_of(method, num_rounds=2):
    config = validate(
        {
            "data": {"num_validation": 100},
            "method": method,
            "controls": [],
            "ray": {"enabled": False},
            "training": {"num_rounds": num_rounds, "num_steps": 2, "val_batch_size": 20},
        },
        source="the test",
    )
    return build_run(config, group=SingleProcess(), device=torch.device("cpu"))


def trained(method):
    run = run_of(method)
    (arm,) = run.arms
    state = arm.method.init()
    for index in range(2):
        state, _ = arm.method.round(state, (arm.data or run.data).round(index), index)
    return state.student.theta


def test_the_student_is_trained_under_the_mean_of_the_files(tmp_path):
    files = [shifts(tmp_path / f"{value}.safetensors", value) for value in (0.5, 1.5)]
    middle = shifts(tmp_path / "middle.safetensors", 1.0)
    of_both = trained({"name": "frozen_loss", "files": [str(file) for file in files]})
    assert torch.equal(of_both, trained({"name": "frozen_loss", "files": [str(middle)]}))
    own = {"name": "static_dln", "loss": {"name": "adjusted"}}
    assert not torch.equal(of_both, trained(own)), "the loss as it begins"
    zero = shifts(tmp_path / "zero.safetensors", 0.0)
    assert torch.equal(trained({"name": "frozen_loss", "files": [str(zero)]}), trained(own))


def test_a_training_does_not_go_on_under_another_loss_than_it_began_with(tmp_path):
    file = shifts(tmp_path / "loss.safetensors", 0.5)
    method = {"name": "frozen_loss", "files": [str(file)]}
    state = run_of(method).arms[0].method.init()
    shifts(file, 1.5)
    resumed = run_of(method)
    with pytest.raises(UserError, match=r"method.files: the loss is another one than that under which this run began"):
        resumed.arms[0].method.round(state, resumed.data.round(1), 1)


def test_losses_of_two_kinds_have_no_mean(tmp_path):
    one = shifts(tmp_path / "one.safetensors", 1.0)
    family = AdjustedLoss(AdjustedSpec(shifts=(0.0,) * 10, smoothing=True))
    LearnedLoss(family).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors is of another kind than that of .*one.safetensors"):
        read_mean([one, tmp_path / "other.safetensors"], FACTS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PairLoss.of(LossNetworkSpec(activation="silu")), PairLoss.of(LossNetworkSpec())),
        (PairLoss.of(LossNetworkSpec(memory=1.0)), PairLoss.of(LossNetworkSpec(memory=3.0))),
        (SoftMetricLoss(SoftMetricSpec(("a", "b"), (1.0, 1.0), 2, "image")), SOFT_METRIC),
    ],
)
def test_weights_that_mean_different_things_have_no_mean(one, other, tmp_path):
    files = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    for family, file in zip((one, other), files, strict=True):
        LearnedLoss(family).save(file)
    task = Segmentation(("a", "b"))
    with pytest.raises(UserError, match="is of another kind"):
        read_mean(files, LossFacts(task, 2, seed=0))


def test_what_a_run_counted_in_its_own_images_may_differ(tmp_path):
    files = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    LearnedLoss(SOFT_METRIC).save(files[0])
    LearnedLoss(SoftMetricLoss(SoftMetricSpec(("a", "b"), (0.7, 0.3), 2))).save(files[1])
    assert read_mean(files, LossFacts(Segmentation(("a", "b")), 2, seed=0))[0].spec == SOFT_METRIC.spec


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match=r"method.files: there is no file .*none.safetensors"):
        read_mean([tmp_path / "none.safetensors"], FACTS)
    (tmp_path / "mess.safetensors").write_bytes(b"mess")
    with pytest.raises(UserError, match=r"method.files: .*mess.safetensors is not a learned loss"):
        read_mean([tmp_path / "mess.safetensors"], FACTS)


def test_a_loss_for_other_classes_is_refused(tmp_path):
    file = shifts(tmp_path / "ten.safetensors", 1.0)
    with pytest.raises(UserError, match=r"method.files: the loss of .* 10 classes"):
        read_mean([file], LossFacts(Classification(), 4, seed=0))
