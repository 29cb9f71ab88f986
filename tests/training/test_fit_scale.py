"""What `fit` looks at as a whole, it looks at piece by piece, and once."""

import pytest
import torch
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.data.tensor_examples import loader_of_tensors


class Watched(nn.Linear):
    """Keeps the number of rows of each forward pass in evaluation mode."""

    def __init__(self):
        super().__init__(4, 3)
        self.seen = []

    def forward(self, x):
        if not self.training:
            self.seen.append(len(x))
        return super().forward(x)


def examples(num):
    labels = torch.arange(num) % 3
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(num)) + labels[:, None], labels


def watched(num_validation, **arguments):
    sizes = {"num_rounds": 1, "num_steps": 1, "batch_size": 3, "warm_share": 1.0}
    network = DynamicLossNetwork()
    sets = {"train": examples(12), "validation": examples(num_validation)}
    return fit(Watched(), **sets, loss=network, **(sizes | arguments))


@pytest.mark.parametrize(
    ("num", "at_once", "pieces"), [(40, 20, [40]), (120, 20, [100, 20]), (1200, 300, [500, 500, 200])]
)
def test_the_validation_set_is_seen_in_pieces_and_once_an_evaluation(num, at_once, pieces):
    first_look = [at_once]
    assert watched(num, val_batch_size=at_once).model.seen == first_look + pieces


def test_both_names_of_the_validation_accuracy_are_reported():
    row = watched(40, val_batch_size=20).rows[-1]
    assert row["test_accuracy"] == row["validation_accuracy"] and row["test_error"] == row["validation_error"]


def test_pieces_of_different_sizes_count_by_their_examples():
    """7 examples by 5: the mean over all of them, not the mean of the two pieces' means."""
    inputs, labels = examples(7)
    data = loader_of_tensors(
        (inputs, labels), (inputs, labels), num_steps=1, batch_size=1, val_batch_size=1, seed=0, device="cpu"
    )
    batches = list(data.validation(0))
    assert [len(batch.targets) for batch in batches] == [5, 2]
    mean = sum((batch.weights * batch.targets).sum() for batch in batches)
    assert mean.item() == pytest.approx(labels.double().mean().item(), rel=1e-6)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), inputs)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7, 14))
