"""What else validation images can be used for: mixed in, or in the last rounds alone."""

import numpy as np
import torch
from test_loader import DATASET, NOISY, make

from l2t_ray.data.splits import fixed, mixed, validation_alone
from l2t_ray.methods.phases import Phase, PhasedData

LABELS = DATASET.train.labels
POLICY = fixed(LABELS, 24, seed=5)
VALIDATION = POLICY.at(0).validation


def trusting(policy):
    """Labels as the experiment gives them: those of validation images are clean."""
    observed = NOISY.copy()
    observed[VALIDATION] = LABELS[VALIDATION]
    return make(lambda *_, **__: policy, observed_labels=observed)


def trained_on(loader, rounds):
    batches = [batch for index in rounds for batch in loader.round(index).train]
    return torch.cat([b.indices for b in batches]).numpy(), torch.cat([b.targets for b in batches]).numpy()


def test_mixed_trains_on_everything_equally_often():
    rows, targets = trained_on(trusting(mixed(POLICY)), range(15))  # 15 * 4 * 7 images = 7 passes over 60
    assert (np.bincount(rows, minlength=60) == 7).all()
    is_clean = np.isin(rows, VALIDATION)
    assert (targets[is_clean] == LABELS[rows[is_clean]]).all()
    assert (targets[~is_clean] == NOISY[rows[~is_clean]]).all()


def test_validation_alone():
    rows, targets = trained_on(trusting(validation_alone(POLICY)), range(6))  # 168 images = 7 passes over 24
    assert (np.bincount(rows, minlength=60)[VALIDATION] == 7).all() and set(rows) == set(VALIDATION)
    assert (targets == LABELS[rows]).all()


class Unused:
    """A method that a phase needs and its data does not ask."""

    def init(self):
        raise AssertionError

    def round(self, state, batches, index):
        raise AssertionError


def test_phases_change_the_training_batches_alone():
    first, then = make(fixed), trusting(validation_alone(POLICY))
    data = PhasedData([Phase(0, Unused(), first), Phase(2, Unused(), then)])
    for index in range(4):
        expected = (first if index < 2 else then).round(index)
        actual = data.round(index)
        for a, b in zip([*actual.train, actual.val], [*expected.train, expected.val], strict=True):
            assert all(map(torch.equal, a, b))
        assert all(map(torch.equal, actual.val, first.round(index).val))
        assert data.epoch(index) == first.epoch(index)
    assert data.num_classes == 3
    for name, arguments in (("validation", [0]), ("test", [])):
        pairs = zip(getattr(data, name)(*arguments), getattr(first, name)(*arguments), strict=True)
        assert all(torch.equal(a.indices, b.indices) for a, b in pairs)
