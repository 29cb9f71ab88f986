"""What is no argument of `fit` is refused in a sentence, before anything is trained."""

import numpy as np
import pytest
import torch
from torch import nn

from l2t_ray.assembly.callbacks import EarlyStopping
from l2t_ray.assembly.fit import fit
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.interfaces import UserError
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

NAN, INF = float("nan"), float("inf")


def examples(num):
    labels = torch.arange(num) % 3
    return torch.nn.functional.one_hot(labels, 4).float(), labels


def model():
    return nn.Linear(4, 3)


def broken_loss():
    network = DynamicLossNetwork()
    with torch.no_grad():
        network.phi[0] = NAN
    return network


def attempt(rows, **arguments):
    sets = {"train": examples(12), "validation": examples(9)}
    sizes = {"num_rounds": 1, "num_steps": 1, "batch_size": 6, "val_batch_size": 6, "warm_share": 1.0}
    return fit(model(), **({"loss": DynamicLossNetwork(), "on_row": rows.append} | sets | sizes | arguments))


def fitted(**arguments):
    sizes = {"num_rounds": 2, "num_steps": 1, "batch_size": 6, "val_batch_size": 6}
    return fit(model(), train=examples(12), validation=examples(9), **(sizes | arguments))


COUNT = "must be a whole number of at least 1, got"
WRONG = {
    "num_rounds": ([0, -1, 2.0, True, NAN, INF, "3", None], COUNT),
    "num_steps": ([0, -3, 2.5, True, None], COUNT),
    "batch_size": ([0, -1, 2.5, False, [4]], COUNT.replace("be a", "be None or a")),
    "val_batch_size": ([0, -1, 2.5, False, [4]], COUNT.replace("be a", "be None or a")),
    "learning_rate": (
        [0, -0.1, NAN, INF, True, "0.1", torch.tensor(0.1)],
        "must be None or a finite number above 0, got",
    ),
    "momentum": ([1, 1.5, -0.1, NAN, True], r"must be a number in \[0, 1\), got"),
    "weight_decay": ([-1e-4, INF, NAN, False], "must be a finite number of at least 0, got"),
    "warm_share": ([1.5, -1.0, 15, NAN, True], r"must be None or a share of the rounds, in \[0, 1\], got"),
    "teacher": (["LSTM", "sgd", ["adam"], nn.LSTM], "must be None, 'adam' or 'lstm', got"),
    "seed": ([-1, 1.0, True, 2**63, "0", None], r"must be a whole number from 0 to 2\^63 - 1, got"),
    "loss": ([nn.CrossEntropyLoss(), broken_loss(), 3], "must be None, a loss family or its settings, or a Dynamic"),
    "task": ([3, "segmentation", Classification, nn.Linear(2, 2)], "must be None or a task, which has name, metrics"),
    "try_first": ([1, "no", None], "must be True or False, got"),
    "optimizer": (
        ["SGD", None, 3, torch.optim.Adam, {}, {"name": "adam", "weight_decay": 7}, {"betas": (0.9, 0.99)}],
        "must be 'sgd', 'adam', 'adamw', or one of them as 'name' beside nesterov, betas, eps, eps_root, clip "
        r"\(learning_rate, momentum and weight_decay are arguments of their own\), got",
    ),
    "on_row": (["print"], "must be a function of one row, got 'print'"),
    "callbacks": ([print, [EarlyStopping], ["print"], None], "must be a list of functions of a round's number and"),
    "eval_every": ([0, 2.5, None], COUNT),
    "checkpoint": ([True, "", ["x"]], "must be None or a directory, got"),
    "checkpoint_every": ([0, None], COUNT),
    "precision": (["fp16", 16, torch.bfloat16, []], "must be None or 'bf16', got"),
    "progress": ([1, None], "must be True or False, got"),
    "device": (["gpu", "cuda:99", "meta", True, 1.5], "must be one that this machine has"),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in WRONG.items() for value in values], ids=repr
)
def test_a_value_that_is_none_for_an_argument_is_refused(name, value):
    rows = []
    with pytest.raises(UserError, match=f"^{name} {WRONG[name][1]}") as refusal:
        attempt(rows, **{name: value})
    assert rows == [] and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"optimizer": "adamw", "momentum": 0.9}, "training.momentum is 0.9, and is not read .*optimizer=adamw"),
        ({"optimizer": {"name": "adam", "betas": (0.9, 1.0)}}, r"training\.betas.* should be less than 1"),
        ({"optimizer": {"name": "adam", "nesterov": True}}, "training.nesterov is True, and is not read"),
        ({"optimizer": {"name": "sgd", "clip": -1}}, "training.clip in the arguments of fit.* greater than 0"),
    ],
)
def test_settings_that_mean_nothing_to_the_optimizer_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        attempt(rows := [], **arguments)
    assert rows == []


INPUTS, LABELS = examples(12)
WRONG_SETS = [
    (None, "train must be .inputs, labels.*got a NoneType"),
    ((INPUTS, LABELS, LABELS), "got 3 things"),
    ((INPUTS.tolist(), LABELS), r"train\[0\] \(inputs\) must be a tensor or a NumPy array, got a list"),
    (((INPUTS, INPUTS), LABELS), r"train\[0\] \(inputs\) must be a tensor or a NumPy array, got a tuple"),
    ((INPUTS.numpy().astype(object), LABELS), "NumPy array of object"),
    ((INPUTS, np.array(list("abc") * 4)), r"train\[1\] \(labels\) is text; number it, as classes by np\.unique\("),
    ((INPUTS, np.array(list("abc") * 4, dtype=object)), r"train\[1\] \(labels\) is text; number it"),
    ((INPUTS.to_sparse(), LABELS), "dense"),
    ((INPUTS + 0j, LABELS), "complex"),
    ((INPUTS[:0], LABELS[:0]), "train is empty"),
    ((INPUTS[:, :0], LABELS), "without values"),
    ((INPUTS[:4], LABELS[:4]), "train has 4 examples, fewer than batch_size=6; lower batch_size"),
    ((INPUTS, LABELS[:9]), "12 inputs but 9 labels"),
    ((INPUTS.index_fill(0, torch.tensor([7]), NAN), LABELS), "not finite in 1 of 12 inputs, the first at position 7"),
    ((INPUTS.index_fill(0, torch.tensor([7, 9]), -INF), LABELS), "not finite in 2 of 12 inputs"),
    ((INPUTS[:, :3], LABELS), r"train are \(3,\) .* validation \(4,\)"),
    ((INPUTS.double(), LABELS), r"train are \(4,\) of torch.float64 .* validation \(4,\) of torch.float32"),
    ((INPUTS, LABELS.float()), r"int64 class number.*torch\.float32.*labels\.long\(\)"),
    ((INPUTS, LABELS > 0), r"int64 class number.*torch\.bool"),
    ((INPUTS, LABELS[:, None]), r"shape \(12, 1\).*flatten"),
    ((INPUTS, LABELS - 1), "at least 0, got -1"),
    ((INPUTS, LABELS + 1), "validation has the label 0, and train has classes 1, 2, 3"),
    ((INPUTS, LABELS * 0), "validation has the label 2"),
]


@pytest.mark.parametrize(("train", "sentence"), WRONG_SETS, ids=[sentence[:30] for _, sentence in WRONG_SETS])
def test_a_training_set_that_is_none_is_refused(train, sentence):
    rows = []
    with pytest.raises(UserError, match=sentence):
        attempt(rows, train=train)
    assert rows == []


class Silent(Classification):
    def terms(self, outputs, batch):
        return None


class Hidden:
    phi = property(lambda self: 1 / 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": Silent()}, "task Silent cannot read the model's outputs and the targets of validation: Attribute"),
        (
            {"task": Segmentation(["a", "b", "c"])},
            "task [Ss]egmentation cannot (count|read)",
        ),
        ({"loss": TermLoss({"l_box": ["all"]})}, "loss combines the terms l_box .* and the classification task gives"),
        ({"loss": Hidden()}, "loss must be None, a loss family"),
    ],
)
def test_a_task_or_a_loss_that_is_for_something_else_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        attempt(rows := [], warm_share=None, method="l2t_dln", **({"loss": None} | arguments))
    assert rows == [] and "\n" not in str(refusal.value)


def test_a_loss_network_in_double_precision_is_taken_in_single():
    errors = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)  # the model's first weights
        loss = DynamicLossNetwork(hidden=3, layers=2).to(dtype)
        errors.append(fitted(method="l2t_dln", loss=loss).rows[-1]["val_error"])
    assert errors[0] == errors[1]


def test_a_loss_for_other_classes_than_the_model_gives_is_refused():
    with pytest.raises(UserError, match=r"loss is for 4 classes, and the labels have 3, model 3 outputs"):
        attempt(rows := [], loss=DynamicLossNetwork(layers=0, pairs="softmax", channel=4))
    assert rows == []


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64], ids=str
)
def test_labels_of_any_integer_type_are_taken(dtype):
    attempt(rows := [], train=(INPUTS, LABELS.to(dtype)))
    assert len(rows) == 1


@pytest.mark.parametrize(
    "turned",
    [lambda x: x, lambda x: x[::-1], lambda x: x.astype(">f4"), lambda x: np.broadcast_to(x, x.shape)],
    ids=["plain", "reversed", "other bytes", "read only"],
)
def test_numpy_arrays_are_taken_as_tensors_are(turned):
    inputs = turned(INPUTS.numpy())
    plain = torch.from_numpy(np.ascontiguousarray(inputs.astype(np.float32)))
    by_array, by_tensor = [], []
    torch.manual_seed(0)
    attempt(by_array, train=[inputs, LABELS.numpy().astype(np.int32)])
    torch.manual_seed(0)
    attempt(by_tensor, train=(plain, LABELS))
    assert by_array[0]["train_loss"] == by_tensor[0]["train_loss"]


@pytest.mark.parametrize(
    "numbers", [{"num_rounds": np.int64(1), "learning_rate": np.float32(0.1)}, {"learning_rate": 1}]
)
def test_numpy_numbers_and_whole_rates_are_numbers(numbers):
    attempt(rows := [], **numbers)
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"method": "gce", "warm_share": 1.0}, "warm_share is for a method that learns its loss, and method is 'gce'"),
        ({"method": "gce", "teacher": "adam"}, "teacher is for a method that learns its loss"),
        ({"method": "nothing"}, r"method.*'nothing'"),
        ({"method": {"name": "l2t_dln", "hidden": 3}}, r"method\.hidden"),
        ({"loss": DynamicLossNetwork(hidden=2000)}, r"loss\.hidden"),
        (
            {
                "method": {"name": "l2t_dln", "batch_norm_buffers": "dropped"},
                "loss": DynamicLossNetwork(pairs="softmax", memory=1.0),
            },
            "batch_norm_buffers is 'dropped'",
        ),
    ],
)
def test_arguments_that_a_method_does_not_know_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        fitted(**given)


def test_a_given_loss_leaves_the_other_settings_of_the_loss(monkeypatch):
    seen = []
    monkeypatch.setattr("l2t_ray.assembly.run.build_arm", lambda method, *_: seen.append(method) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(
            method={"name": "l2t_dln", "loss": {"slope": "free"}},
            loss=DynamicLossNetwork(hidden=6, pairs="softmax"),
            warm_share=0.5,
            try_first=False,
        )
    assert (seen[0].loss.slope, seen[0].loss.hidden) == ("free", 6)


def test_a_method_that_is_told_the_noise_is_refused_where_nobody_knows_it():
    with pytest.raises(UserError, match="forward_correction is told the true noise matrix, and nobody knows"):
        fitted(method="forward_correction")


def test_test_inputs_are_tried_before_anything_is_trained():
    rows, tokens, labels = [], torch.arange(12)[:, None] % 5, torch.arange(12) % 3
    embedding = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(4, 3))
    sizes = {"num_rounds": 2, "num_steps": 1, "batch_size": 6, "val_batch_size": 6}
    with pytest.raises(UserError, match="test"):
        fit(
            embedding,
            train=(tokens, labels),
            validation=(tokens, labels),
            test=(tokens + 5, labels),
            on_row=rows.append,
            **sizes,
        )
    assert rows == []


def test_too_few_validation_examples_for_turns_are_said(caplog):
    with caplog.at_level("WARNING", logger="l2t_ray"):
        fitted(try_first=False)
    assert "the 9 validation examples are only validated on: they do not fill val_batch_size=6 twice" in caplog.text


class Forgets(nn.Linear):
    """Takes the argument, and does not do what it asks for."""

    def forward(self, x, with_embedding=False):
        return super().forward(x)


def test_a_model_that_gives_no_embedding_though_it_says_so_is_refused():
    rows = []
    with pytest.raises(UserError, match=r"with_embedding=True.*must give its outputs and, after them, one vector"):
        fit(
            Forgets(4, 3),
            train=examples(12),
            validation=examples(12),
            num_rounds=4,
            num_steps=1,
            batch_size=6,
            val_batch_size=6,
            on_row=rows.append,
        )
    assert rows == []
