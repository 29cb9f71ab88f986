"""How labels were corrupted, from some images with clean labels and many with noisy ones.

Gold loss correction (Hendrycks et al., NeurIPS 2018) takes for T[c] what a student trained on noisy labels says, on
average, of clean images of class c. That is A T, where A is the student's own confusion of classes: a student that is
right half of the time blurs T beyond use. Here the two are kept apart:

1. A readout P(c | x) of the true class (`readout.py`), fitted on the clean images, whose class shares are q.
2. J[c, y], the share of images of class c with the label y among the noisy ones, by maximum likelihood: an image x
   with the label y has the likelihood sum_c P(x | c) J[c, y], and P(x | c) is P(c | x) / q[c] but for a factor that J
   does not change. The problem is concave in J; EM climbs it (Dempster et al. 1977), as in Dawid & Skene 1979. The
   row sums of J are the classes' shares, which may differ from q (label shift, Saerens et al. 2002).
3. The shares are drawn to q as far as chance explains the difference, and the likeliest J with these row sums has the
   rows of T: where the classes' shares are those of the clean images, T gains from knowing it.
4. Standard errors, by a jackknife: all of it again without each fifth of the clean and of the noisy images.

The readout must not know the noisy label but through the true class, so the student is to be one that has not
memorised labels: an early one, or a later one that was trained under such a channel. The standard errors know nothing
of a student that has, nor of clean images that look unlike the noisy ones of their class, and with only some dozens of
clean images a class they are too small by a third.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.readout import cross_validated, fit_readout, folds, posterior, principal

EM_STEPS = 300
EM_TOLERANCE = 1e-4
TINY = 1e-30
SLOW_ENTRIES = 1_000_000
MAX_ENTRIES = 50_000_000
"""Images times classes: 0.4 GB. Of more noisy images an even selection is looked at."""

_LOG = logging.getLogger(__name__)


class NoiseEstimate(NamedTuple):
    """The noise of labels, and how well it is known.

    Attributes:
        channel: T, row the class, column the label that it is given; rows add up to 1. A class that is expected
            of less than half a noisy image has the identity's row.
        shares: of the true classes among the noisy images; they add up to 1.
        channel_error: standard errors of T's entries; infinite in the row of such a class.
        shares_error: standard errors of the shares.
    """

    channel: Float[Tensor, "c c"]
    shares: Float[Tensor, " c"]
    channel_error: Float[Tensor, "c c"]
    shares_error: Float[Tensor, " c"]

    def __str__(self) -> str:
        wrong, errors = 1 - self.channel.diagonal(), self.channel_error.diagonal()
        errors = torch.where(errors.isfinite(), errors, 0.0)
        total, total_error = self.shares @ wrong, (self.shares * errors).norm()  # rows taken for independent
        worst = int(wrong.argmax())
        return (
            f"{total:.1%} +- {total_error:.1%} of the labels are wrong, most in class {worst} "
            f"({wrong[worst]:.0%} +- {errors[worst]:.0%}); the classes' shares run from {self.shares.min():.1%} to "
            f"{self.shares.max():.1%}"
        )


@torch.no_grad()
def estimate_noise(
    clean_features: Float[Tensor, "n d"],
    clean_labels: Int[Tensor, " n"],
    noisy_features: Float[Tensor, "m d"],
    noisy_labels: Int[Tensor, " m"],
    *,
    num_classes: int,
) -> NoiseEstimate:
    """The channel of the noisy labels and the true classes' shares, in double precision.

    Features are what the student says of each image: its embedding, or where it has none to show its
    log-probabilities.
    """
    if len(clean_labels) * num_classes > SLOW_ENTRIES:
        _LOG.info("estimating the label noise among %d classes: this takes up to a minute", num_classes)
    stride = max(1, -(-len(noisy_labels) * num_classes // MAX_ENTRIES))
    noisy_labels = noisy_labels[::stride]
    clean, noisy = principal(clean_features, noisy_features[::stride])
    penalty, held_out = cross_validated(clean, clean_labels, num_classes=num_classes)
    start = torch.stack(held_out).mean(dim=0)
    readout = fit_readout(clean, clean_labels, penalty, num_classes=num_classes, start=start)
    prior = torch.bincount(clean_labels, minlength=num_classes).to(clean) / len(clean_labels)
    fold = folds(noisy_labels)
    # Everything is done with all images, and then without each fifth of them.
    samples = [(readout, fold >= 0), *((weights, fold != held) for held, weights in enumerate(held_out))]

    def fitted(shares: Float[Tensor, "k c"] | None, start: Tensor) -> list[Tensor]:
        joints = []
        for number, (weights, rows) in enumerate(samples):
            likelihoods = torch.where(prior > 0, posterior(noisy[rows], weights) / prior.clamp(min=TINY), 0.0)
            pieces = _by_label(likelihoods, noisy_labels[rows])
            joints.append(_climb(pieces, start, None if shares is None else shares[number]))
            start = 0.9 * joints[0] + 0.1 * start  # near, but EM never leaves a zero
        return joints

    found = torch.stack([joint.sum(dim=1) for joint in fitted(None, _begin(prior))])
    # Errors of shares are taken to be a multinomial's but for a common factor, the better known.
    inflation = _jackknife(found[1:]).sum() / _binomial(found[0]).sum().clamp(min=TINY)
    drawn = prior + _garrote(found[0] - prior, inflation * _binomial(prior)) * (found[0] - prior)
    # Whether chance explains a difference is not known for certain: the parts' shares vary as they were found.
    shares = torch.cat([drawn[None], (drawn + found[1:] - found[1:].mean(dim=0)).clamp(min=0)])
    shares = shares / shares.sum(dim=1, keepdim=True)
    channel, *others = (_rows(joint, 0.5 / len(noisy_labels)) for joint in fitted(shares, _begin(shares[0])))
    return NoiseEstimate(
        channel,
        shares[0],
        _channel_error(channel, torch.stack(others), shares[0] * len(noisy_labels)),
        (inflation * _binomial(found[0])).sqrt(),
    )


def noise_channel(
    clean_features: Float[Tensor, "n d"],
    clean_labels: Int[Tensor, " n"],
    noisy_features: Float[Tensor, "m d"],
    noisy_labels: Int[Tensor, " m"],
    *,
    num_classes: int,
) -> Float[Tensor, "c c"]:
    """The channel of `estimate_noise` alone."""
    return estimate_noise(clean_features, clean_labels, noisy_features, noisy_labels, num_classes=num_classes).channel


def most_likely_channel(posterior: Float[Tensor, "m c"], labels: Int[Tensor, " m"]) -> Float[Tensor, "c c"]:
    """The T under which the labels are likeliest, given P(c | x) of each image: the classes' shares are known."""
    ones = posterior.new_ones(posterior.shape[1])
    return _rows(_climb(_by_label(posterior, labels), _begin(ones), ones), TINY)


def _begin(shares: Float[Tensor, " c"]) -> Float[Tensor, "c c"]:
    # A flat channel is a stationary point where the shares are known: the labels alone tell its rows apart.
    num_classes = len(shares)
    return shares[:, None] * (0.5 * torch.eye(num_classes).to(shares) + 0.5 / num_classes)


def _climb(
    pieces: Sequence[Tensor], joint: Float[Tensor, "c c"], shares: Float[Tensor, " c"] | None
) -> Float[Tensor, "c c"]:
    """EM for J from a first one, given P(x | c) of the images of each label; `shares`: its row sums, where known."""
    count = sum(map(len, pieces))
    for _ in range(EM_STEPS):
        # Label by label, and without the responsibilities of the classes for each image.
        columns = [
            column * (piece.t() @ (piece @ column).clamp(min=TINY).reciprocal())
            for piece, column in zip(pieces, joint.t(), strict=True)
        ]
        last, joint = joint, torch.stack(columns, dim=1) / count
        if shares is not None:
            joint = joint * (shares / joint.sum(dim=1).clamp(min=TINY))[:, None]
        if (joint - last).abs().sum() < EM_TOLERANCE * joint.sum():
            break
    return joint


def _by_label(values: Float[Tensor, "m c"], labels: Int[Tensor, " m"]) -> list[Tensor]:
    """For each label the rows `[k, c]` of the images that have it."""
    counts = torch.bincount(labels, minlength=values.shape[1])
    return list(values[labels.argsort(stable=True)].split(counts.tolist()))


def _rows(joint: Float[Tensor, "c c"], smallest: float) -> Float[Tensor, "c c"]:
    """Each row's shares; the identity's row where there is less than that."""
    total = joint.sum(dim=1, keepdim=True)
    return torch.where(total > smallest, joint / total.clamp(min=TINY), torch.eye(len(joint)).to(joint))


def _jackknife(values: Float[Tensor, "k *rest"]) -> Float[Tensor, " *rest"]:
    """The variance of what comes of a whole, from what comes of it without each of k parts."""
    return (len(values) - 1) * values.var(dim=0, correction=0)


def _binomial(shares: Float[Tensor, "*rest"]) -> Float[Tensor, "*rest"]:
    return shares * (1 - shares)


def _garrote(difference: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """What of each difference is not chance: the non-negative garrote (Breiman 1995)."""
    return (1 - variance / difference.square().clamp(min=TINY)).clamp(min=0)


def _channel_error(
    channel: Float[Tensor, "c c"], others: Float[Tensor, "k c c"], counts: Float[Tensor, " c"]
) -> Float[Tensor, "c c"]:
    """A multinomial's of as many images, times a factor that the jackknife shows for the row, which is known better.

    Half an image is added to each entry, so that none at 0 or 1 is known for certain.
    """
    counts = counts[:, None].clamp(min=TINY)
    known = (_binomial(channel) / counts).sum(dim=1, keepdim=True) + 0.5 / counts.square()
    inflation = (_jackknife(others).sum(dim=1, keepdim=True) / known).clamp(min=1)
    variance = inflation * _binomial((channel * counts + 0.5) / (counts + 1)) / counts
    return torch.where(counts > 0.5, variance.sqrt(), torch.inf)
