"""Controls for unbalanced classes, which count how many training labels each class has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.sources import source_of
from l2t_ray.interfaces import UserError
from l2t_ray.methods.balanced_softmax import BalancedSoftmaxConfig, balanced_softmax, log_shares
from l2t_ray.methods.class_balanced import ClassBalancedConfig, class_weights
from l2t_ray.methods.parts import Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 2])
COUNTS = np.array([50, 20, 9, 1])


def test_balanced_softmax_is_the_formula_of_its_paper():
    """Ren et al. (2020), eq. (3): n_y e^z_y / sum_j n_j e^z_j."""
    n = torch.from_numpy(COUNTS)
    p = n * LOGITS.exp() / (n * LOGITS.exp()).sum(1, keepdim=True)
    expected = -p.gather(1, LABELS[:, None])[:, 0].log()
    torch.testing.assert_close(balanced_softmax(log_shares(COUNTS))(LOGITS, LABELS), expected)
    even = balanced_softmax(log_shares(np.full(4, 7)))
    torch.testing.assert_close(even(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_class_weights_are_those_of_effective_numbers():
    """Cui et al. (2019), eq. (2): E_n = 1 + beta + ... + beta^(n-1); their code makes the weights add up to C."""
    effective = torch.tensor([sum(0.9**i for i in range(n)) for n in COUNTS], dtype=torch.float64)
    expected = 1 / effective
    torch.testing.assert_close(class_weights(COUNTS, 0.9), expected / expected.sum() * 4)
    inverse = 1 / torch.from_numpy(COUNTS).double()
    torch.testing.assert_close(class_weights(COUNTS, 1 - 1e-9), inverse / inverse.mean(), rtol=1e-6, atol=0)


def test_a_class_without_a_label_leaves_everything_finite():
    counts = np.array([5, 0, 3])
    assert log_shares(counts).isfinite().all() and class_weights(counts, 0.99).isfinite().all()


def longtail(method, **data):
    return validate(
        {
            "data": {"num_validation": 100, "imbalance": {"kind": "exponential", "factor": 20}, **data},
            "method": method,
            "controls": [],
            "ray": {"enabled": False},
            "training": {"num_rounds": 4, "num_steps": 2, "val_batch_size": 20},
        },
        source="the test",
    )


def parts_of(config):
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    method = run.arms[0].method
    trainee = getattr(method, "_trainee", None) or method.phases[0].method._trainee
    return Parts(trainee, source_of(config), num_rounds=4, seed=0)


def test_the_labels_that_are_trained_on_are_counted():
    """With noise they are as given; validation images count where the method's own loss reads them."""
    config = longtail("balanced_softmax", noise={"kind": "flip_to_two", "rate": 0.4})
    parts = parts_of(config)
    rows = parts.source.split(0).train
    given = np.bincount(parts.labels.observed[rows], minlength=10)
    assert (parts.class_counts() == given).all()
    assert (given != np.bincount(parts.labels.validation[rows], minlength=10)).any()
    for clean_images, more in (("validate", 0), ("fine_tuned", 0), ("trusted", 0), ("mixed", 10)):
        method = BalancedSoftmaxConfig(clean_images=clean_images)
        assert (method.class_counts(parts) == given + more).all()


@pytest.mark.parametrize("clean_images", ["validate", "mixed", "fine_tuned", "trusted"])
def test_every_use_of_the_clean_images_trains(clean_images):
    config = longtail({"name": "class_balanced", "clean_images": clean_images})
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    arm = run.arms[0]
    state = arm.method.init()
    for index in range(4):
        state, metrics = arm.method.round(state, arm.data.round(index), index)
    assert state.student.theta.isfinite().all() and metrics["train_loss"] > 0


def test_weights_may_come_late():
    """After plain cross-entropy, and before the rounds in which validation images are trained on."""

    def starts(**settings):
        parts = parts_of(longtail("cross_entropy"))
        return [phase.first_round for phase in ClassBalancedConfig(**settings).phases(replace(parts, num_rounds=100))]

    assert starts() == [0] and starts(deferred=0.8) == [0, 80]
    assert starts(deferred=0.5, clean_images="fine_tuned", fine_tuning_share=0.2) == [0, 40, 80]
    first, late = ClassBalancedConfig(deferred=0.5).phases(parts_of(longtail("cross_entropy")))
    losses = [phase.method._row_loss(LOGITS.repeat(1, 3), LABELS) for phase in (first, late)]
    torch.testing.assert_close(losses[0], F.cross_entropy(LOGITS.repeat(1, 3), LABELS, reduction="none"))
    assert (losses[1] / losses[0]).unique().numel() > 1


def test_labels_of_one_class_are_not_counted(monkeypatch):
    parts = parts_of(longtail("cross_entropy"))
    labels = parts.labels
    alone = labels._replace(observed=np.zeros_like(labels.observed))
    monkeypatch.setattr(type(parts.source), "labels", lambda self: alone)
    with pytest.raises(UserError, match="these are of one class alone, or no class numbers; take a method or loss"):
        parts.class_counts()
