"""Clean images under cross-entropy, noisy ones under the loss of the method."""

import torch
from small_problem import small_trainee

from l2t_ray.core.student import cross_entropy
from l2t_ray.interfaces import Batch
from l2t_ray.methods.fixed_loss import FixedLoss


def test_each_image_is_under_the_loss_that_is_meant_for_it():
    is_clean = torch.tensor([True, False, True, False, False, True])
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    batch = Batch(inputs, torch.tensor([0, 1, 2]), weights, indices=torch.tensor([5, 1, 4]))

    method = FixedLoss(small_trainee(), lambda logits, labels: 7.0 + logits[:, 0], is_clean=is_clean)
    state = method.init().student
    loss, logits = method._loss(state.theta, torch.zeros(0), dict(state.buffers), batch)

    of_clean = cross_entropy(logits, batch.targets)[0]
    expected = 0.5 * of_clean + 0.25 * (7.0 + logits[1, 0]) + 0.25 * (7.0 + logits[2, 0])
    torch.testing.assert_close(loss, expected)
