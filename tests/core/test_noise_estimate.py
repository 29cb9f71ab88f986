"""Label noise, estimated from what a student says: known channels are to be found again."""

import pytest
import torch

from l2t_ray.core.noise_estimate import fit_readout, most_likely_channel, noise_channel

CHANNEL = torch.tensor([[0.6, 0.2, 0.2, 0.0], [0.0, 0.6, 0.2, 0.2], [0.2, 0.0, 0.6, 0.2], [0.1, 0.3, 0.0, 0.6]])


def drawn(count, *, seed, sharpness=1.5):
    """True classes, and what a student that learned from noisy labels says: log(P(c | x) T), P itself unsure."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (count,), generator=generator)
    evidence = torch.randn(count, 4, generator=generator)
    evidence[torch.arange(count), classes] += sharpness
    posterior = (sharpness * evidence).softmax(dim=1)
    return classes, posterior, (posterior @ CHANNEL).log()


def corrupted(classes, *, seed):
    return CHANNEL[classes].multinomial(1, generator=torch.Generator().manual_seed(seed)).squeeze(1)


def off(channel):
    """L1 distance to the true rows, averaged."""
    return (channel.float() - CHANNEL).abs().sum(dim=1).mean().item()


def test_the_channel_is_found_where_the_average_answer_is_far_off():
    clean_classes, _, clean_logits = drawn(1_000, seed=0)
    classes, _, logits = drawn(5_000, seed=1)
    found = noise_channel(clean_logits, clean_classes, logits, corrupted(classes, seed=2), num_classes=4)
    answers = torch.zeros(4, 4).index_add_(0, clean_classes, clean_logits.softmax(dim=1))
    assert off(answers / answers.sum(dim=1, keepdim=True)) > 0.35
    assert off(found) < 0.12
    torch.testing.assert_close(found.sum(dim=1).float(), torch.ones(4))


def test_clean_labels_give_the_identity():
    clean_classes, _, clean_logits = drawn(1_000, seed=0, sharpness=3.0)
    classes, _, logits = drawn(5_000, seed=1, sharpness=3.0)
    found = noise_channel(clean_logits, clean_classes, logits, classes, num_classes=4)
    assert (found.diagonal() > 0.95).all()


def test_each_step_of_em_makes_the_labels_likelier(monkeypatch):
    classes, posterior, _ = drawn(2_000, seed=1)
    labels = corrupted(classes, seed=2)

    def likelihood(steps):
        monkeypatch.setattr("l2t_ray.core.noise_estimate.EM_STEPS", steps)
        channel = most_likely_channel(posterior.double(), labels)
        return (posterior.double() @ channel)[torch.arange(len(labels)), labels].log().mean().item()

    values = [likelihood(steps) for steps in (0, 1, 2, 5, 20, 100)]
    assert values == sorted(values) and values[-1] > values[0] + 1e-3


def test_the_true_channel_is_the_likeliest_given_enough_labels():
    classes, posterior, _ = drawn(200_000, seed=1)
    assert off(most_likely_channel(posterior.double(), corrupted(classes, seed=2))) < 0.03


def test_a_class_that_is_never_expected_keeps_the_identity():
    posterior = torch.tensor([[0.5, 0.5, 0.0]]).repeat(10, 1)
    found = most_likely_channel(posterior, torch.tensor([0, 1] * 5))
    assert found[2].tolist() == [0.0, 0.0, 1.0]
    assert found.isfinite().all()


def test_readout_is_the_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)
    weights = fit_readout(features, labels, 0.01, num_classes=3).requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weights[:-1] + weights[-1], labels)
    (loss + 0.005 * weights[:-1].square().sum()).backward()
    assert weights.grad.abs().max() < 1e-4


@pytest.mark.parametrize("count", [4, 40])
def test_few_clean_images_still_give_a_channel(count):
    clean_classes, _, clean_logits = drawn(count, seed=0)
    classes, _, logits = drawn(500, seed=1)
    found = noise_channel(clean_logits, clean_classes, logits, corrupted(classes, seed=2), num_classes=4)
    torch.testing.assert_close(found.sum(dim=1).float(), torch.ones(4))
    assert (found >= 0).all()
