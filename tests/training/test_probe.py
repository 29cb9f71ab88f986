"""What the probe says of methods whose answers and weights are known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.interfaces import Batch, MethodState, StudentState
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.probe import Probe, roc_auc


def test_roc_auc_is_scikit_learns():
    generator = np.random.default_rng(0)
    is_positive = generator.random(200) < 0.3
    for scores in (generator.random(200) + is_positive, generator.integers(0, 4, 200).astype(float)):  # with ties
        assert roc_auc(scores, is_positive) == pytest.approx(roc_auc_score(is_positive, scores), abs=1e-12)
    with pytest.raises(ValueError, match="positives and negatives, got 3 and 0"):
        roc_auc(np.zeros(3), np.ones(3, dtype=bool))


class Answers(nn.Module):
    """Logits are the inputs."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


class Plain:
    def init(self):
        raise NotImplementedError

    def round(self, state, batches, index):
        raise NotImplementedError


class Weigher(Plain):
    """Weighs a sample by the first of its logits."""

    def sample_weights(self, state, batch, index):
        return batch.inputs[:, 0] + index


@pytest.fixture
def probe_and_state():
    # Answers 0, 1, 1, 0; labels 0, 1, 0, 0; the last two labels are wrong, and only the last is memorised.
    logits = torch.tensor([[3.0, 0.0], [0.5, 2.0], [1.0, 4.0], [0.25, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    batches = [Batch(logits[i], labels[i], torch.ones(2) / 4, torch.tensor([0, 1])) for i in (slice(2), slice(2, 4))]
    student = FlatModule(Answers())
    state = MethodState(StudentState(torch.zeros(1), torch.zeros(1), {}), {})
    return Probe(student, Classification(), batches, np.array([False, False, True, True])), state


def test_what_is_given_back_and_which_weights_it_has(probe_and_state):
    probe, state = probe_and_state
    seen = probe(Weigher(), state, 1)
    assert seen["reproduced"] == 0.5
    assert seen["weight_right"] == pytest.approx(2.75) and seen["weight_wrong"] == pytest.approx(1.625)
    assert seen["weight_auc"] == 0.75  # of the four pairs of wrong and right, only (1, .5) is the wrong way round


def test_a_method_that_weighs_nothing_has_no_weights(probe_and_state):
    probe, state = probe_and_state
    assert set(probe(Plain(), state, 0)) == {"reproduced"}
