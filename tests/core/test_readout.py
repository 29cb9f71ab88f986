"""The readout of the true class: the minimum it is meant to be, by whatever way."""

import pytest
import torch
import torch.nn.functional as F

from l2t_ray.core import readout
from l2t_ray.core.readout import cross_validated, fit_readout, folds, posterior, principal


def blobs(count, num_classes=3, num_features=4, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    centers = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(count, num_features, generator=generator, dtype=torch.float64)
    return centers[labels] + noise, labels


def objective(weights, features, labels, penalty):
    loss = F.cross_entropy(features @ weights[:-1] + weights[-1], labels)
    return loss + penalty / 2 * weights[:-1].square().sum()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_readout_is_the_minimum(scale):
    features, labels = blobs(200)
    features = features * torch.tensor([1.0, scale, 1.0, 1 / scale])
    weights = fit_readout(features, labels, 0.01, num_classes=3).requires_grad_()
    objective(weights, features, labels, 0.01).backward()
    assert weights.grad.abs().max() < 1e-3 * scale


def test_where_the_search_begins_is_of_no_account():
    features, labels = blobs(200)
    found = fit_readout(features, labels, 0.01, num_classes=3)
    again = fit_readout(features, labels, 0.01, num_classes=3, start=found + 0.3)
    torch.testing.assert_close(posterior(features, again), posterior(features, found), atol=1e-3, rtol=0)


def test_principal_directions_lose_nothing_of_what_depends_on_fewer():
    """Twenty log-probabilities that come from four numbers have five directions; predictions stay as they are."""
    features, labels = blobs(300)
    others, _ = blobs(50, seed=2)
    mixing = torch.randn(4, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    long, long_others = ((x @ mixing).log_softmax(dim=1) for x in (features, others))
    turned, turned_others = principal(long, long_others)
    assert turned.shape == (300, 5)
    torch.testing.assert_close(
        turned.square().sum(dim=1).mean(), torch.tensor(20.0, dtype=torch.float64), atol=1e-3, rtol=0
    )
    mean, scale = long.mean(dim=0), long.std(dim=0, correction=0)
    plain, plain_others = ((x - mean) / (scale + readout.SCALE_FLOOR) for x in (long, long_others))
    expected = posterior(plain_others, fit_readout(plain, labels, 0.01, num_classes=3))
    actual = posterior(turned_others, fit_readout(turned, labels, 0.01, num_classes=3))
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_each_fold_has_its_part_of_each_class(order):
    labels = torch.arange(100) % 10
    labels = labels.sort().values if order == "sorted" else labels
    counts = torch.stack([torch.bincount(labels[folds(labels) == fold], minlength=10) for fold in range(5)])
    assert (counts == 2).all()


def test_the_penalty_is_larger_where_there_is_nothing_to_learn():
    features, labels = blobs(100)
    by_chance = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert cross_validated(features, by_chance, num_classes=3)[0] == readout.PENALTIES[0]
    assert cross_validated(features, labels, num_classes=3)[0] < readout.PENALTIES[0]


def test_readouts_without_a_fold_know_nothing_of_it():
    features, labels = blobs(100)
    penalty, held_out = cross_validated(features, labels, num_classes=3)
    changed = features.clone()
    changed[folds(labels) == 2] += 100
    again = [fit_readout(changed[folds(labels) != 2], labels[folds(labels) != 2], penalty, num_classes=3)]
    torch.testing.assert_close(posterior(features, held_out[2]), posterior(features, again[0]), atol=0.02, rtol=0)
