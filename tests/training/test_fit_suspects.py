"""The table of labels that look wrong, which `fit` gives back."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.interfaces import UserError

LEAST_AUROC = 0.95
"""Measured: 0.973."""
NUM_TRAIN = 1200


@pytest.fixture(scope="module")
def digits():
    """Inputs, labels of which two in five are wrong, and those that are right."""
    pixels, classes = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(classes))
    inputs = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    clean = torch.tensor(classes[order])
    given = clean.clone()
    flipped = torch.tensor(generator.random(len(clean)) < 0.4)
    given[flipped] = (clean[flipped] + torch.tensor(generator.integers(1, 3, len(clean)))[flipped]) % 10
    return inputs, given, clean


def trained(digits, **settings):
    inputs, given, clean = digits
    torch.manual_seed(0)
    sizes = {"num_rounds": 40, "num_steps": 10, "val_batch_size": 100, "try_first": False}
    return fit(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        train=(inputs[:NUM_TRAIN], given[:NUM_TRAIN]),
        validation=(inputs[NUM_TRAIN:1500], clean[NUM_TRAIN:1500]),
        **(sizes | settings),
    )


@pytest.fixture(scope="module")
def table(digits):
    return trained(digits).suspects()


def test_wrong_labels_of_digits_are_ranked_first(digits, table):
    _, given, clean = (part[:NUM_TRAIN].numpy() for part in digits)
    index = table["index"].to_numpy()
    assert roc_auc_score((given != clean)[index], table["score"]) > LEAST_AUROC
    differs = (table["given_label"] != table["suggested_label"]).to_numpy()
    assert (clean[index] == table["suggested_label"])[differs].mean() > 0.85


def test_the_table_has_a_row_for_each_training_example_with_the_label_that_it_was_given(digits, table):
    assert list(table.columns) == ["index", "given_label", "suggested_label", "score"]
    assert sorted(table["index"]) == list(range(NUM_TRAIN))  # no validation example
    assert (table["given_label"].to_numpy() == digits[1].numpy()[table["index"].to_numpy()]).all()
    assert table["score"].is_monotonic_decreasing and table["score"].between(0, 1).all()


def test_examples_that_were_never_drawn_stand_last_without_a_score(digits):
    table = trained(digits, num_rounds=2, num_steps=2, batch_size=25, warm_share=0.5).suspects()
    assert table["score"].isna().sum() >= NUM_TRAIN - 100
    assert not table["score"][:1].isna().any() and table["score"][-1:].isna().all()


def test_a_method_without_a_memory_says_which_one_has_one(digits):
    fitted = trained(digits, method="cross_entropy", num_rounds=2, num_steps=2)
    with pytest.raises(UserError, match='take method="recommended"'):
        fitted.suspects()
