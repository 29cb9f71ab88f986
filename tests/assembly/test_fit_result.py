"""What `fit` gives back can be asked for classes, tables and the noise, whatever the inputs came in."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from l2t_ray.assembly.fit import fit
from l2t_ray.assembly.fit_result import Fit
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.interfaces import UserError

INPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """Remembers the sizes of its minibatches, and the mode that it was in."""

    def __init__(self):
        super().__init__()
        self.head, self.seen = nn.Linear(4, 3), []

    def forward(self, x):
        self.seen.append((len(x), self.training, torch.is_grad_enabled()))
        return self.head(x)


def fitted(model=None, **facts):
    torch.manual_seed(0)
    return Fit(model or nn.Linear(4, 3), None, [], None, **facts)


FORMS = {
    "tensor": (INPUTS, torch.Tensor),
    "array": (INPUTS.numpy(), np.ndarray),
    "table": (pd.DataFrame(INPUTS.numpy()), np.ndarray),
    "dataset": (TensorDataset(INPUTS), torch.Tensor),
    "dataset with labels": (TensorDataset(INPUTS, torch.zeros(7)), torch.Tensor),
    "shuffled loader": (DataLoader(TensorDataset(INPUTS, torch.zeros(7)), batch_size=2, shuffle=True), torch.Tensor),
}


@pytest.mark.parametrize("form", FORMS)
def test_classes_are_those_of_the_logits_in_the_order_of_the_examples(form):
    own, (inputs, kind) = fitted(), FORMS[form]
    logits = own.model(INPUTS).detach()
    torch.testing.assert_close(own.outputs(inputs, batch_size=3), logits)
    classes = own.predict(inputs, batch_size=3)
    assert isinstance(classes, kind) and np.asarray(classes).dtype == np.int64
    assert np.asarray(classes).tolist() == logits.argmax(dim=1).tolist()


def test_examples_are_evaluated_in_batches_in_evaluation_mode_and_the_mode_comes_back():
    model = Counting().train()
    fitted(model).predict(INPUTS, batch_size=3)
    assert model.seen == [(3, False, False), (3, False, False), (1, False, False)]
    assert model.training and model.head.training


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, scale):
        return self.head(x) * scale


def test_inputs_by_name_are_the_models_arguments():
    own = fitted(Named())
    expected = (own.model.head(INPUTS) * torch.ones(7, 1)).argmax(dim=1)
    assert own.predict({"x": INPUTS, "scale": torch.ones(7, 1)}, batch_size=2).tolist() == expected.tolist()
    classes = own.predict({"x": INPUTS.numpy(), "scale": np.ones((7, 1), np.float32)})
    assert isinstance(classes, np.ndarray) and classes.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda own: own.predict((INPUTS, INPUTS)), "inputs must be a tensor or a NumPy array, got a tuple"),
        (lambda own: own.predict(INPUTS[:, :3]), r"model cannot be evaluated with inputs \[7, 3\]"),
        (
            lambda own: own.predict(INPUTS.double()),
            r"inputs of predict\(\) are float64 and parameters of model are float32",
        ),
        (lambda own: own.predict(INPUTS, batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (lambda own: own.suspects(), "suspects.. needs a method that remembers"),
    ],
)
def test_what_it_cannot_answer_is_said_in_a_sentence(ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask(fitted())


def test_classes_of_outputs_that_are_no_logits_are_refused_and_the_outputs_given():
    own = fitted(are_logits=False)
    with pytest.raises(UserError, match=r"this task has other outputs; take outputs\(\)"):
        own.predict(INPUTS)
    assert own.outputs(INPUTS).shape == (7, 3)


def test_the_noise_matrix_is_the_estimates_and_none_without_one():
    channel = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    noise = NoiseEstimate(channel, torch.tensor([0.5, 0.5]), torch.zeros(2, 2), torch.zeros(2))
    assert Fit(nn.Linear(4, 2), None, [], noise).noise_matrix.tolist() == channel.double().tolist()
    assert fitted().noise_matrix is None


def test_the_history_is_a_table_of_the_rounds():
    labels = torch.arange(12) % 3
    inputs = torch.randn(12, 4) + 3 * nn.functional.one_hot(labels, 4)
    sizes = {"num_rounds": 3, "num_steps": 1, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.5}
    result = fit(nn.Linear(4, 3), train=(inputs, labels), validation=(inputs, labels), try_first=False, **sizes)
    history = result.history
    assert history["round"].tolist() == [0, 1, 2] and history["test_accuracy"].notna().tolist() == [False, False, True]
    accuracy = (result.predict(inputs) == labels).float().mean().item()
    assert history["test_accuracy"].iloc[-1] == pytest.approx(accuracy)
    assert result.noise_matrix.shape == (3, 3) and result.noise_matrix.sum(axis=1) == pytest.approx(np.ones(3))
    assert repr(result).startswith("Fit(Linear, 3 rounds, test_accuracy=0.") and len(repr(result)) < 100
