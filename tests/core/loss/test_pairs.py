"""The 1-vs-1 transformation against pairs written out by hand."""

import math

import pytest
import torch

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pairs import one_vs_one, other_classes


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_three_classes_as_in_the_supplement():
    """True class 0 of 3 gives (p_0, p_1) and (p_0, p_2); each score is the logistic function of its own logit."""
    z = [0.3, -1.2, 2.0]
    pairs = one_vs_one(torch.tensor([z], dtype=torch.float64), torch.tensor([0]))
    p = [sigmoid(v) for v in z]
    expected = torch.tensor([[[p[0], p[1]], [p[0], p[2]]]], dtype=torch.float64)
    torch.testing.assert_close(pairs, expected)  # float64: rtol 1e-7, far above rounding


@pytest.mark.parametrize("transform", ["sigmoid", "softmax"])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_equals_a_loop_over_the_other_classes(transform, num_classes):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.arange(9) % num_classes
    pairs = one_vs_one(logits, labels, transform)
    for i, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        total = sum(math.exp(z) for z in row)
        p = [sigmoid(z) if transform == "sigmoid" else math.exp(z) / total for z in row]
        expected = [[p[label], p[j]] for j in range(num_classes) if j != label]
        torch.testing.assert_close(pairs[i], torch.tensor(expected, dtype=torch.float64))


def test_other_classes_are_in_increasing_order():
    others = other_classes(torch.tensor([0, 2, 3]), 4)
    assert others.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("transform", ["sigmoid", "softmax"])
def test_permuting_the_wrong_classes_leaves_the_loss_of_a_row(transform):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 6, generator=generator)
    network = DynamicLossNetwork(pairs=transform, seed=3)
    label = torch.tensor([2])
    for order in ([5, 0, 2, 1, 4, 3], [1, 0, 2, 4, 5, 3]):  # class 2 stays where it is
        # float32 sum of five terms in another order: a few units in the last place of 1e-7
        torch.testing.assert_close(
            network.losses(logits[:, order], label), network.losses(logits, label), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("num_classes", [3, 10, 100])
def test_one_loss_network_serves_any_number_of_classes(num_classes):
    """With all wrong logits equal, all pairs of a row are alike, so its loss is that of one pair."""
    network = DynamicLossNetwork(seed=1)
    logits = torch.full((1, num_classes), -0.4)
    logits[0, 1] = 0.9
    expected = network(torch.tensor([[sigmoid(0.9), sigmoid(-0.4)]]))
    # float32 mean over up to 99 equal terms
    torch.testing.assert_close(network.losses(logits, torch.tensor([1])), expected, rtol=1e-5, atol=1e-6)


def test_is_differentiable_in_the_logits():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([3, 0, 1])
    for transform in ("sigmoid", "softmax"):
        assert torch.autograd.gradcheck(lambda z, t=transform: one_vs_one(z, labels, t), logits)


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"at least 2 classes, got logits of shape \(5, 1\)"):
        one_vs_one(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64))
