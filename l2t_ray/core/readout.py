"""A readout P(c | x): multinomial logistic regression on what a student says of images, its penalty cross-validated."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.lbfgs import LBFGS

PENALTIES = (3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
NUM_FOLDS = 5
TELLING_PENALTY = 1e-1
CHOICE_TOLERANCE = 1e-5
"""Of the readouts among which is chosen; their errors differ by thousandths."""
SCALE_FLOOR = 1e-6
VARIANCE_FLOOR = 1e-9
"""Of a direction of standardised features: below it, not even the smallest penalty lets a weight matter."""


def principal(
    clean: Float[Tensor, "n d"], others: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "m r"]]:
    """Both in double precision, standardised and turned by what the first show, without directions they do not have.

    A penalised readout is the same in these coordinates. The log-probabilities of 1,000 classes that come from 64
    units have 65 directions. Double, since the line search stalls in single; standardised, so that one range of
    penalties is for all.
    """
    clean, others = clean.detach().double(), others.detach().double()
    mean, scale = clean.mean(dim=0), clean.std(dim=0, correction=0)
    clean, others = ((features - mean) / (scale + SCALE_FLOOR) for features in (clean, others))
    variances, directions = torch.linalg.eigh(clean.t() @ clean / len(clean))
    directions = directions[:, variances > VARIANCE_FLOOR]
    return clean @ directions, others @ directions


def folds(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The fold of each image: each class is dealt out one by one, in whatever order the images come."""
    dealt = torch.arange(len(labels), device=labels.device) % NUM_FOLDS
    return torch.empty_like(dealt).scatter_(0, labels.argsort(stable=True), dealt)


def cross_validated(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, num_classes: int
) -> tuple[float, list[Float[Tensor, "d_plus_1 c"]]]:
    """The penalty whose readout says most of images that it was not fitted on, and its readouts without each fold.

    From the largest penalty on, until a smaller one does worse. Two images a fold are needed for a choice.
    """
    fold = folds(labels)
    best, chosen, readouts = float("inf"), PENALTIES[0], []
    starts: list[Tensor | None] = [None] * NUM_FOLDS
    for penalty in PENALTIES if len(labels) >= 2 * NUM_FOLDS else PENALTIES[:1]:
        fits = [
            fit_readout(
                features[fold != held],
                labels[fold != held],
                penalty,
                num_classes=num_classes,
                start=start,
                tolerance=CHOICE_TOLERANCE,
            )
            for held, start in enumerate(starts)
        ]
        starts = [*fits]
        errors = [_error(features[fold == held], labels[fold == held], fit) for held, fit in enumerate(fits)]
        error = torch.stack(errors).nan_to_num().sum().item()  # a fold without images says nothing
        if error >= best:
            break
        best, chosen, readouts = error, penalty, fits
    return chosen, readouts


@torch.no_grad()
def told(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, num_classes: int) -> float:
    """How much of what there is to tell about the labels a readout tells of examples that it was not fitted on.

    1 minus its cross-entropy by the labels' entropy: 1 where it is certain and right, 0 or less where it knows no more
    than the classes' shares.
    """
    clean, _ = principal(features, features[:0])
    fold, missing = folds(labels), features.new_zeros(()).double()
    for held in range(NUM_FOLDS):
        is_held = fold == held
        if not is_held.any() or is_held.all():
            continue
        readout = fit_readout(
            clean[~is_held], labels[~is_held], TELLING_PENALTY, num_classes=num_classes, tolerance=CHOICE_TOLERANCE
        )
        missing += is_held.sum() * _error(clean[is_held], labels[is_held], readout)
    shares = torch.bincount(labels) / len(labels)
    entropy = torch.special.entr(shares.double()).sum()
    return 1 - (missing / len(labels) / entropy).item() if entropy > 0 else 0.0


@torch.no_grad()
def fit_readout(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    penalty: float,
    *,
    num_classes: int,
    start: Float[Tensor, "d_plus_1 c"] | None = None,
    tolerance: float = 1e-9,
) -> Float[Tensor, "d_plus_1 c"]:
    """Weights of a logistic regression, the biases in the last row: `features @ weights[:-1] + weights[-1]`.

    Minimises the mean cross-entropy plus `penalty / 2` times the squared norm of all weights but the biases,
    until a step lowers that by less than `tolerance`.
    """
    # In units in which the curvature is about 1: that of cross-entropy is the features' variance over the classes.
    variances = torch.cat([features.square().mean(dim=0), features.new_ones(1)])
    penalties = torch.cat([torch.full_like(variances[:-1], penalty), features.new_zeros(1)])
    unit = (variances / num_classes + penalties).rsqrt()[:, None]
    weights = torch.zeros(len(unit), num_classes).to(features) if start is None else start / unit
    optimizer = LBFGS(
        [weights], max_iter=200, history_size=20, tolerance_change=tolerance, line_search_fn="strong_wolfe"
    )
    rows = torch.arange(len(labels), device=labels.device)
    scores = features.new_empty(len(labels), num_classes)

    def closure() -> float:
        # By hand and in one place: at 1,000 classes most of the time would go into copies of the scores.
        actual = weights * unit
        torch.addmm(actual[-1], features, actual[:-1], out=scores)
        scores.sub_(scores.amax(dim=1, keepdim=True))
        own = scores[rows, labels]
        total = scores.exp_().sum(dim=1, keepdim=True)
        loss = (total.log().squeeze(1) - own).mean() + penalty / 2 * actual[:-1].square().sum()
        scores.div_(total)[rows, labels] -= 1
        slope = torch.cat([features.t() @ scores, scores.sum(dim=0, keepdim=True)]) / len(labels)
        weights.grad = unit * (slope + penalties[:, None] * actual)
        return loss.item()

    optimizer.step(closure)
    return weights * unit


def posterior(features: Float[Tensor, "m d"], readout: Float[Tensor, "d_plus_1 c"]) -> Float[Tensor, "m c"]:
    return torch.addmm(readout[-1], features, readout[:-1]).softmax(dim=1)


def _error(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(torch.addmm(weights[-1], features, weights[:-1]), labels)
