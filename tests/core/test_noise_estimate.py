"""Label noise, estimated from what a student says: known channels are to be found again."""

import pytest
import torch

from l2t_ray.core import noise_estimate
from l2t_ray.core.noise_estimate import estimate_noise, most_likely_channel, noise_channel

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
        monkeypatch.setattr(noise_estimate, "EM_STEPS", steps)
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


@pytest.mark.parametrize("count", [4, 40])
def test_few_clean_images_still_give_a_channel(count):
    clean_classes, _, clean_logits = drawn(count, seed=0)
    classes, _, logits = drawn(500, seed=1)
    found = noise_channel(clean_logits, clean_classes, logits, corrupted(classes, seed=2), num_classes=4)
    torch.testing.assert_close(found.sum(dim=1).float(), torch.ones(4))
    assert (found >= 0).all()


def three_classes(counts, *, spread, rate, seed):
    """Features and true classes of so many images a class, and labels of which `rate` are one of the two others."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    features = spread * torch.eye(3)[classes] + torch.randn(len(classes), 3, generator=generator)
    others = (classes + torch.randint(1, 3, (len(classes),), generator=generator)) % 3
    return features, classes, torch.where(torch.rand(len(classes), generator=generator) < rate, others, classes)


def of_three(rate):
    return torch.full((3, 3), rate / 2, dtype=torch.float64).fill_diagonal_(1 - rate)


@pytest.mark.parametrize("spread", [5.0, 3.0, 2.0])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_classes_of_other_shares_than_the_clean_ones_are_no_label_noise(spread, rate):
    """Ten to one to one, with as many clean images of each. With the clean images' shares taken for the training
    images', clean labels of the small classes pass for wrong to 37 % at the smallest spread."""
    counts = [2500, 250, 250]
    clean, clean_classes, _ = three_classes([300] * 3, spread=spread, rate=0, seed=0)
    features, _, labels = three_classes(counts, spread=spread, rate=rate, seed=1)
    found = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
    # As few as 250 images with known classes have standard errors of 0.025; 4 of them, where classes overlap 2 times.
    assert (found.channel - of_three(rate)).abs().max() < (0.02 if rate == 0 else 0.1)
    assert ((found.channel - of_three(rate)) / found.channel_error).abs().max() < 4
    true_shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    torch.testing.assert_close(found.shares, true_shares, atol=0.02, rtol=0)
    assert ((found.shares - true_shares) / found.shares_error).abs().max() < 4


@pytest.mark.parametrize("spread", [3.0, 2.0])
def test_shares_like_the_clean_ones_are_found_to_be_so(monkeypatch, spread):
    """The channel then is that of known shares but for little of its standard error."""
    clean, clean_classes, _ = three_classes([300] * 3, spread=spread, rate=0, seed=2)
    features, _, labels = three_classes([1000] * 3, spread=spread, rate=0.2, seed=3)
    found = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
    monkeypatch.setattr(noise_estimate, "_garrote", lambda difference, variance: torch.zeros_like(difference))
    known = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
    assert known.shares.tolist() == pytest.approx([1 / 3] * 3)
    assert ((found.channel - known.channel) / found.channel_error).abs().max() < 0.5


@pytest.mark.parametrize("counts", [[300, 300, 300], [900, 200, 200]])
def test_standard_errors_are_those_of_repeated_estimates(counts):
    """The errors of the estimates, in standard errors, have a root mean square of about 1."""
    errors, truth = [], of_three(0.3)
    for seed in range(10):
        clean, clean_classes, _ = three_classes([200] * 3, spread=2.5, rate=0, seed=100 + seed)
        features, _, labels = three_classes(counts, spread=2.5, rate=0.3, seed=200 + seed)
        found = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
        errors.append((found.channel - truth) / found.channel_error)
    # 10 times 6 free entries: a tenth for chance. Some eight degrees of freedom a row in the jackknife: 1.15 in place
    # of 1, and a quarter for what it does not see.
    assert 0.75 < torch.stack(errors).square().mean().sqrt() < 1.5


def test_likeliest_images_and_labels_have_the_labels_own_shares():
    """At the maximum the columns of J add up to the shares of the labels, whatever the classes' likelihoods."""
    classes, posterior, _ = drawn(2_000, seed=1)
    labels = corrupted(classes, seed=2)
    pieces = noise_estimate._by_label(posterior.double(), labels)
    start = noise_estimate._begin(torch.full((4,), 0.25, dtype=torch.float64))
    joint = noise_estimate._climb(pieces, start, None)
    torch.testing.assert_close(joint.sum(dim=0), torch.bincount(labels).double() / len(labels))


def test_a_class_that_is_absent_has_no_share_and_an_unknown_row():
    clean, clean_classes, _ = three_classes([100] * 3, spread=8.0, rate=0, seed=0)
    features, _, labels = three_classes([300, 300, 0], spread=8.0, rate=0, seed=1)
    found = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
    assert found.shares.tolist() == pytest.approx([0.5, 0.5, 0], abs=0.01)
    torch.testing.assert_close(found.channel, torch.eye(3).double(), atol=0.02, rtol=0)
    assert found.channel_error[:2].isfinite().all() and found.channel_error[2].isinf().all()


def test_of_too_many_images_an_even_selection_tells_nearly_the_same(monkeypatch):
    clean, clean_classes, _ = three_classes([100] * 3, spread=3.0, rate=0, seed=0)
    features, _, labels = three_classes([2000] * 3, spread=3.0, rate=0.2, seed=1)
    seen = []
    monkeypatch.setattr(
        noise_estimate, "posterior", lambda x, w: seen.append(len(x)) or (x @ w[:-1] + w[-1]).softmax(1)
    )
    monkeypatch.setattr(noise_estimate, "MAX_ENTRIES", 4_000)
    found = estimate_noise(clean, clean_classes, features, labels, num_classes=3)
    assert max(seen) == 1_200  # a fifth of 6,000: the next would be 1,500, 4,500 entries
    torch.testing.assert_close(found.channel, of_three(0.2), atol=0.06, rtol=0)  # four standard errors of 400 images


def test_an_estimate_says_itself_in_a_sentence():
    clean, clean_classes, _ = three_classes([300] * 3, spread=5.0, rate=0, seed=0)
    features, _, labels = three_classes([2500, 250, 250], spread=5.0, rate=0.2, seed=1)
    said = str(estimate_noise(clean, clean_classes, features, labels, num_classes=3))
    assert "% +- 0." in said and "of the labels are wrong, most in class" in said
    assert "shares run from 8" in said and "to 83" in said
