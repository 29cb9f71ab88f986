"""`fit` takes data in the forms that people have it in, and trains the same on each."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from l2t_ray.assembly.fit import fit
from l2t_ray.interfaces import UserError
from l2t_ray.tasks.segmentation import Segmentation

SIZES = {"num_rounds": 2, "num_steps": 2, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.5, "try_first": False}
PLAIN = SIZES | {"warm_share": None, "method": "cross_entropy"}
FOLLOWED = ("train_loss", "val_error", "hypergradient_norm", "test_accuracy")


def examples(num):
    labels = torch.arange(num) % 3
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(num)) + 2 * F.one_hot(labels, 4), labels


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.2), nn.Linear(5, 3))


TRAIN, VALIDATION = examples(24), examples(12)
FORMS = {
    "tables": (pd.DataFrame(TRAIN[0].numpy()), pd.Series(TRAIN[1].numpy())),
    "dataset": TensorDataset(*TRAIN),
    "loader": DataLoader(TensorDataset(*TRAIN), batch_size=6, shuffle=True),
}


@pytest.fixture(scope="module")
def expected():
    return fit(model(), train=TRAIN, validation=VALIDATION, **SIZES)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_is_one_training(form, expected):
    batch_size = None if form == "loader" else 6
    arrays = tuple(part.numpy() for part in VALIDATION)
    validation = arrays if form == "tables" else TensorDataset(*VALIDATION)
    own = fit(model(), train=FORMS[form], validation=validation, **(SIZES | {"batch_size": batch_size}))
    for row, other in zip(own.rows, expected.rows, strict=True):
        assert [row.get(key) for key in FOLLOWED] == [other.get(key) for key in FOLLOWED]
    assert all(map(torch.equal, own.model.parameters(), expected.model.parameters()))
    assert own.suspects().equals(expected.suspects())


class TokensAndMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens, mask):
        weights = mask.float() / mask.sum(dim=1, keepdim=True)
        return self.head((weights[..., None] * self.embedding(tokens)).sum(dim=1))


def test_tokens_and_mask_are_taken_as_tensors_and_as_items_of_any_length():
    """Padded to the longest word of a minibatch or of all: the mask leaves nothing of the difference but rounding."""
    words = [torch.arange(1 + row % 5) % 8 + 1 for row in range(24)]

    class Words(Dataset):
        __len__ = lambda self: 24  # noqa: E731
        __getitem__ = lambda self, row: {"tokens": words[row], "label": row % 3}  # noqa: E731

    def padded(items):
        tokens = nn.utils.rnn.pad_sequence([item["tokens"] for item in items], batch_first=True)
        return {"tokens": tokens, "mask": tokens > 0, "labels": torch.tensor([item["label"] for item in items])}

    whole = padded([Words()[row] for row in range(24)])
    given = ({"tokens": whole["tokens"], "mask": whole["mask"]}, whole["labels"])
    losses = []
    for data in (given, DataLoader(Words(), batch_size=6, collate_fn=padded)):
        torch.manual_seed(0)
        losses.append([row["val_error"] for row in fit(TokensAndMask(), train=data, validation=data, **SIZES).rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class Jittered(TensorDataset):
    def __getitem__(self, row):
        inputs, label = super().__getitem__(row)
        return inputs + 0.3 * torch.randn(4) * np.random.rand(), label  # noqa: NPY002


def test_random_transforms_are_drawn_again_in_the_same_way_and_by_the_seed():
    runs = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        own = model()
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        fitted = fit(own, train=Jittered(*TRAIN), validation=VALIDATION, seed=seed, **PLAIN)
        runs.append([row["train_loss"] for row in fitted.rows])
    assert runs[0] == runs[1] != runs[2]


def test_masks_come_from_a_dataset_too():
    images, masks = torch.randn(12, 1, 4, 4), torch.arange(12 * 16).reshape(12, 4, 4) % 2
    losses = []
    for data in ((images, masks), TensorDataset(images, masks)):
        torch.manual_seed(0)
        rows = fit(
            nn.Conv2d(1, 2, 1),
            train=data,
            validation=data,
            task=Segmentation(("a", "b")),
            **PLAIN,
        ).rows
        losses.append([row["val_error"] for row in rows])
    assert losses[0] == losses[1]


def test_a_model_is_trained_where_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr("l2t_ray.assembly.fit.usable_device", lambda device: asked.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(nn.Linear(4, 3, device="meta").to_empty(device="cpu"), train=TRAIN, validation=VALIDATION)
    assert asked == [torch.device("cpu")]


def test_a_loader_with_large_validation_minibatches_leaves_two_folds():
    validation = DataLoader(TensorDataset(*VALIDATION), batch_size=100)
    fitted = fit(model(), train=TRAIN, validation=validation, **(SIZES | {"val_batch_size": None}))
    assert fitted.suspects()["index"].max() == 23 and "memory_weight" in fitted.rows[-1]


def test_test_data_may_be_a_loader_and_is_tried_first():
    broken = TensorDataset(VALIDATION[0].double(), VALIDATION[1])
    with pytest.raises(UserError, match=r"those of test .* torch\.float64"):
        fit(model(), train=TRAIN, validation=VALIDATION, test=DataLoader(broken, batch_size=2), **SIZES)
