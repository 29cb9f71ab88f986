"""Labels that `loader_of_tensors` refuses."""

import pytest
import torch

from l2t_ray.data.tensor_examples import loader_of_tensors
from l2t_ray.interfaces import UserError


def data(train, validation=None):
    train = torch.as_tensor(train)
    validation = train if validation is None else torch.as_tensor(validation)
    sets = [(torch.zeros(len(labels), 2), labels) for labels in (train, validation)]
    return loader_of_tensors(*sets, num_steps=1, batch_size=2, val_batch_size=2, seed=0, device="cpu")


def test_good_labels():
    assert data([0, 1, 2]).num_classes == 3


@pytest.mark.parametrize(
    "train, validation, message",
    [
        ([0.0, 1.0], None, r"train: labels must be one int64 class number .* of torch\.float32"),
        ([[0, 1], [1, 0]], None, r"got shape \(2, 2\).*argmax"),
        ([0, 1], [0, 1, -1], "validation: labels must be at least 0, got -1"),
        ([0, 1], [0, 1, 2], "validation has the label 2, and train has classes 0 to 1"),
    ],
)
def test_bad_labels_are_refused(train, validation, message):
    with pytest.raises(UserError, match=message):
        data(train, validation)
