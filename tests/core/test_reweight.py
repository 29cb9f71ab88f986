"""Similarities against numpy, and what makes importance weights safe to use."""

import numpy as np
import pytest
import torch

from l2t_ray.core.reweight import class_centers, importance_weights, similarity

METRICS = ["cosine", "dot", "minkowski", "snr"]
POSITIVE = ["clamp", "softmax", "shift", "softplus", "released"]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- eqs. (31)-(34)


def numpy_similarity(a, b, metric):
    if metric == "cosine":
        return a @ b / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()))
    if metric == "dot":
        return a @ b
    if metric == "minkowski":
        return (np.abs(a - b) ** 2).sum() ** 0.5
    return 10 * np.log10(((a - a.mean()) ** 2).mean() / ((a - b - (a - b).mean()) ** 2).mean())


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_equals_its_equation(metric):
    a, b = draws(6, 9), 1 + draws(6, 9, seed=1)
    expected = [numpy_similarity(x, y, metric) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(similarity(a, b, metric), torch.tensor(np.array(expected)))


def test_snr_does_not_feel_a_constant_added_to_all_coordinates():
    a, b = draws(4, 12), draws(4, 12, seed=1)
    expected = similarity(a, b, "snr")
    # 3 and -2 are of the order of the coordinates: rounding stays near 1e-15
    torch.testing.assert_close(similarity(a + 3, b, "snr"), expected)
    torch.testing.assert_close(similarity(a, b - 2, "snr"), expected)
    assert not torch.allclose(similarity(a + 3, b, "cosine"), similarity(a, b, "cosine"))


def test_snr_in_decibel_is_the_ratio_of_powers():
    a, b = draws(4, 12), draws(4, 12, seed=1)
    ratio = np.var((a - b).numpy(), axis=1) / np.var(a.numpy(), axis=1)
    torch.testing.assert_close(10 ** (-similarity(a, b, "snr") / 10), torch.tensor(ratio))


def test_snr_takes_the_sample_as_the_signal():
    a, b = draws(1, 12), 5 * draws(1, 12, seed=1)
    assert similarity(a, b, "snr") < similarity(b, a, "snr")  # the same noise under a stronger signal


# -- importance weights


def weights_of(embeddings, centers, metric, positive="clamp", labels=None, group=None):
    labels = torch.arange(len(embeddings)) % len(centers) if labels is None else labels
    return importance_weights(embeddings, labels, centers, metric, positive=positive, group=group)


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_non_negative_and_sum_to_one(metric, positive):
    weights = weights_of(draws(10, 6).requires_grad_(), draws(3, 6, seed=1), metric, positive)
    assert weights.shape == (10,) and not weights.requires_grad  # constants for the derivatives
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert weights.max() > 1.01 * weights.min()  # and they tell samples apart


def expected_weights(a, b, metric, positive):
    """The rules of the docstring, sample by sample, for finite similarities."""
    if positive == "released":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    s = np.array([numpy_similarity(x, y, metric) for x, y in zip(a, b, strict=True)])
    if positive == "released":
        raw = np.maximum(10 ** (-s / 10) if metric == "snr" else s, 0)
    else:
        s = 1 / (1 + s) if metric == "minkowski" else s
        raw = {
            "clamp": lambda: np.maximum(s, 1e-6),
            "softmax": lambda: 10 ** (s / 10) if metric == "snr" else np.exp(s),
            "shift": lambda: s - s.min(),
            "softplus": lambda: np.log1p(np.exp(s)),
        }[positive]()
    return raw / raw.sum()


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_weights_follow_the_rule_of_each_mode(metric, positive):
    embeddings, centers = draws(10, 6), draws(3, 6, seed=1)
    labels = torch.arange(10) % 3
    expected = expected_weights(embeddings.numpy(), centers[labels].numpy(), metric, positive)
    torch.testing.assert_close(weights_of(embeddings, centers, metric, positive), torch.tensor(expected))


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_equal_similarities_give_uniform_weights(metric, positive):
    embeddings = draws(1, 6).expand(5, 6).clone()
    weights = weights_of(embeddings, draws(1, 6, seed=1), metric, positive)
    torch.testing.assert_close(weights, torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("positive", ["clamp", "released"])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_all_negative_similarities_give_uniform_weights(metric, positive):
    embeddings = -(1 + draws(4, 6).abs())
    weights = weights_of(embeddings, torch.ones(1, 6, dtype=torch.float64), metric, positive)
    torch.testing.assert_close(weights, torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_embeddings_of_zeros_give_uniform_weights(metric, positive):
    """No direction, no variance: similarities are zero, or undefined for all samples alike."""
    zeros = torch.zeros(4, 6, dtype=torch.float64)
    for centers in (torch.zeros(1, 6, dtype=torch.float64), draws(1, 6)):
        weights = weights_of(zeros, centers, metric, positive)
        torch.testing.assert_close(weights, torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("positive", ["clamp", "softmax", "shift", "softplus"])
def test_a_sample_that_equals_its_centre_counts_as_the_most_alike_other(positive):
    """Its SNR is infinite, which no sum can be divided by."""
    centers = 1 + draws(1, 8)
    embeddings = torch.cat((centers, centers + 0.1 * draws(3, 8, seed=1), centers + 3 * draws(1, 8, seed=2)))
    weights = weights_of(embeddings, centers, "snr", positive)
    assert weights.isfinite().all() and weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert weights[0] == weights[1:].max()


@pytest.mark.parametrize("positive", ["clamp", "softmax", "shift", "softplus"])
def test_an_embedding_without_variance_counts_as_the_least_alike(positive):
    """Its SNR is minus infinity; 0 dB instead would put a dead sample above one with much noise."""
    centers = 1 + draws(1, 8)
    embeddings = torch.cat((torch.zeros_like(centers), centers + 0.1 * draws(2, 8), 0.1 * draws(2, 8, seed=2)))
    assert similarity(embeddings[3:], centers.expand(2, 8), "snr").max() < 0
    weights = weights_of(embeddings, centers, "snr", positive)
    assert weights[0] == weights[1:].min()


@pytest.mark.parametrize("metric", METRICS)
def test_clamped_weights_grow_with_likeness(metric):
    """The nearer a sample lies to its centre, the more it counts: for the Minkowski distance too."""
    center = 1 + draws(1, 8).abs()
    direction = draws(1, 8, seed=3)
    direction -= (direction @ center.T) / (center @ center.T) * center  # so that the dot product falls too
    steps = torch.arange(1, 6)[:, None]
    embeddings = center * (1 - 0.05 * steps) + 0.2 * steps * direction
    weights = weights_of(embeddings, center, metric)
    assert (weights.diff() < 0).all()


def test_released_mode_counts_farther_samples_more():
    center = 1 + draws(1, 8).abs()
    embeddings = center + 0.1 * torch.arange(1, 6)[:, None] * draws(1, 8, seed=3)
    assert (weights_of(embeddings, center, "snr", "released").diff() > 0).all()


def test_each_sample_is_held_against_the_centre_of_its_own_class():
    centers = 3 * torch.eye(3, 6, dtype=torch.float64)
    embeddings = centers[[0, 1, 1]] + 0.1
    weights = weights_of(embeddings, centers, "cosine", labels=torch.tensor([0, 1, 2]))
    assert weights[0] == pytest.approx(weights[1].item()) and weights[2] < 0.5 * weights[0]


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("metric", METRICS)
def test_two_workers_together_weigh_as_one(run_on_two_workers, metric, positive):
    """Slices of unequal length, one of them holding the sample that equals its centre."""
    embeddings, centers, labels = draws(9, 6), draws(3, 6, seed=1), torch.arange(9) % 3
    embeddings[1] = centers[1]
    whole = weights_of(embeddings, centers, metric, positive)

    def work(group):
        part = slice(0, 4) if group.rank == 0 else slice(4, None)
        return weights_of(embeddings[part], centers, metric, positive, labels[part], group)

    weights = torch.cat(run_on_two_workers(work))
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(weights, whole)


def test_two_workers_share_a_uniform_batch_evenly(run_on_two_workers):
    centers = torch.ones(1, 6, dtype=torch.float64)

    def work(group):
        return weights_of(torch.zeros(1 + group.rank, 6, dtype=torch.float64), centers, "dot", "shift", group=group)

    weights = torch.cat(run_on_two_workers(work))
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=torch.float64))


# -- class centres


def test_centres_are_class_means_over_batches():
    embeddings, labels = draws(20, 4), torch.arange(20) % 3
    batches = [(embeddings[:7], labels[:7]), (embeddings[7:], labels[7:])]
    expected = np.stack([embeddings.numpy()[labels.numpy() == c].mean(axis=0) for c in range(3)])
    torch.testing.assert_close(class_centers(iter(batches), 3), torch.tensor(expected))


def test_centres_over_two_workers_equal_those_of_one(run_on_two_workers):
    """Class 2 lives on one worker alone."""
    embeddings, labels = draws(9, 4), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1, 1])
    parts = [slice(0, 4), slice(4, None)]
    whole = class_centers([(embeddings, labels)], 3)
    results = run_on_two_workers(
        lambda group: class_centers([(embeddings[parts[group.rank]], labels[parts[group.rank]])], 3, group=group)
    )
    for centers in results:
        torch.testing.assert_close(centers, whole)


def test_a_missing_class_keeps_its_previous_centre():
    embeddings, labels, previous = draws(6, 4), torch.tensor([0, 2, 0, 2, 0, 2]), draws(3, 4, seed=1)
    centers = class_centers([(embeddings, labels)], 3, previous=previous)
    assert torch.equal(centers[1], previous[1])
    torch.testing.assert_close(centers[0], embeddings[labels == 0].mean(0))
    torch.testing.assert_close(centers[2], embeddings[labels == 2].mean(0))


def test_a_missing_class_without_a_previous_centre_is_an_error():
    batch = (draws(2, 4), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"no sample of class \[1, 3\]"):
        class_centers([batch], 4)
    with pytest.raises(ValueError, match="at least one batch"):
        class_centers([], 4)
