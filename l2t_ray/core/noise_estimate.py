"""How labels were corrupted, from some images with clean labels and many with noisy ones.

Gold loss correction (Hendrycks et al., NeurIPS 2018) takes for T[c] what a student trained on noisy labels says, on
average, of clean images of class c. That is A T, where A is the student's own confusion of classes: a student that is
right half of the time blurs T beyond use. Here the two are kept apart:

1. A readout P(c | x) of the true class: multinomial logistic regression on what the student says of an image, its
   embedding or its log-probabilities, fitted on the clean images.
2. T = argmax_T sum_i log sum_c P(c | x_i) T[c, y_i] over the noisy images. The problem is concave in T; EM climbs it
   (Dempster et al. 1977), as in Dawid & Skene 1979.

The readout must not know the noisy label but through the true class, so the student is to be one that has not
memorised labels: an early one, or a later one that was trained under such a channel.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.lbfgs import LBFGS

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
NUM_FOLDS = 5
SCALE_FLOOR = 1e-6
EM_STEPS = 300
EM_TOLERANCE = 1e-4


def noise_channel(
    clean_features: Float[Tensor, "n d"],
    clean_labels: Int[Tensor, " n"],
    noisy_features: Float[Tensor, "m d"],
    noisy_labels: Int[Tensor, " m"],
    *,
    num_classes: int,
) -> Float[Tensor, "c c"]:
    """T: row the class, column the label that it is given; rows add up to 1.

    Features are what the student says of each image: its embedding, or where it has none to show its
    log-probabilities. A class that the readout never expects among the noisy images keeps the identity's row.
    """
    # In double precision: the line search stalls in single. Standardised, so that one range of penalties is for all.
    clean, noisy = clean_features.detach().double(), noisy_features.detach().double()
    mean, scale = clean.mean(dim=0), clean.std(dim=0, correction=0)
    clean, noisy = ((features - mean) / (scale + SCALE_FLOOR) for features in (clean, noisy))
    penalty = _penalty(clean, clean_labels, num_classes)
    readout = fit_readout(clean, clean_labels, penalty, num_classes=num_classes)
    return most_likely_channel((noisy @ readout[:-1] + readout[-1]).softmax(dim=1), noisy_labels)


def most_likely_channel(posterior: Float[Tensor, "m c"], labels: Int[Tensor, " m"]) -> Float[Tensor, "c c"]:
    """The T under which the labels are likeliest, given P(c | x) of each image; step 2."""
    num_classes = posterior.shape[1]
    # A flat start is a stationary point: the labels alone tell the rows apart.
    channel = 0.5 * torch.eye(num_classes).to(posterior) + 0.5 / num_classes
    for _ in range(EM_STEPS):
        share = posterior * channel.t()[labels]
        share = share / share.sum(dim=1, keepdim=True).clamp(min=1e-30)
        counts = torch.zeros_like(channel).index_add_(0, labels, share).t()
        total = counts.sum(dim=1, keepdim=True)
        last, channel = (
            channel,
            torch.where(total > 0, counts / total.clamp(min=1e-30), torch.eye(num_classes).to(counts)),
        )
        if (channel - last).abs().max() < EM_TOLERANCE:
            break
    return channel


def fit_readout(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], penalty: float, *, num_classes: int
) -> Float[Tensor, "d_plus_1 c"]:
    """Weights of a logistic regression, the biases in the last row: `features @ weights[:-1] + weights[-1]`.

    Minimises the mean cross-entropy plus `penalty / 2` times the squared norm of all weights but the biases.
    """
    weights = torch.zeros(features.shape[1] + 1, num_classes).to(features).requires_grad_()
    optimizer = LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        weights.grad = None
        loss = _readout_error(features, labels, weights) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _readout_error(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(features @ weights[:-1] + weights[-1], labels)


def _penalty(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """The penalty whose readout says most of images that it was not fitted on (cross-validation)."""
    fold = torch.arange(len(labels), device=labels.device) % NUM_FOLDS
    if len(labels) < 2 * NUM_FOLDS:
        return PENALTIES[-1]

    def error(penalty: float) -> float:
        errors = [
            _readout_error(
                features[fold == held],
                labels[fold == held],
                fit_readout(features[fold != held], labels[fold != held], penalty, num_classes=num_classes),
            ).item()
            for held in range(NUM_FOLDS)
        ]
        return sum(errors)

    return min(PENALTIES, key=error)
