"""Adjusted cross-entropy as settings, in jobs and in fit."""

import numpy as np
import pytest
import torch

import l2t_ray
from l2t_ray.assembly.run import loss_facts
from l2t_ray.core.loss.adjusted import AdjustedLoss
from l2t_ray.interfaces import UserError
from l2t_ray.methods.parts import LossFacts
from l2t_ray.settings.experiment import validate
from l2t_ray.tasks.classification import Classification

COUNTED = {"name": "adjusted", "start": "counted"}


def configuration(loss):
    return validate(
        {
            "data": {"num_validation": 100, "imbalance": {"kind": "step", "factor": 8}},
            "method": {"name": "l2t_dln", "loss": loss},
            "ray": {"enabled": False},
        },
        source="the test",
    )


def test_counted_shifts_begin_at_the_log_shares_of_the_training_labels():
    config = configuration(COUNTED)
    loss = config.method.loss.family(loss_facts(config, 10))
    shifts = loss.spec.parts.shifts.shifts(loss.phi)
    expected = torch.where(torch.arange(10) < 5, 0.5, -0.5) * np.log(8)
    torch.testing.assert_close(shifts, expected.float(), rtol=0.02, atol=0)
    even = configuration("adjusted").method.loss.family(loss_facts(config, 10))
    assert not even.spec.parts.shifts.shifts(even.phi).any()


def test_each_part_is_there_if_it_is_set():
    facts = LossFacts(Classification(), 10, 0)
    sizes = {
        "shifts": ({}, 10),
        "power": ({"shifts": False, "power": True}, 1),
        "smoothing, temperature": ({"shifts": False, "smoothing": True, "temperature": True}, 2),
        "channel, memory": ({"channel": True, "memory": 2}, 111),
    }
    for settings, size in sizes.values():
        own = configuration({"name": "adjusted", **settings}).method.loss
        assert len(own.family(facts).phi) == size and own.has_channel == ("channel" in settings)
        noise = own.noise(torch.zeros(size), 10)
        assert noise is None if "channel" not in settings else noise.shape == (10, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shifts": False}, "loss has nothing to learn: set one of loss.shifts"),
        ({"shifts": False, "start": "counted", "power": True}, "loss.start is 'counted', which is of shifts"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        configuration({"name": "adjusted", **settings})


def test_shares_that_nobody_can_count_are_refused():
    with pytest.raises(UserError, match="class shares are counted from the training labels, and here are none"):
        configuration(COUNTED).method.loss.family(LossFacts(Classification(), 10, 0))


@pytest.mark.parametrize("task", [None, Classification()])
def test_fit_counts_the_labels_that_it_is_given(task):
    """With or without the task named. Labels that say nothing: what is left to learn is how common each class is."""
    inputs = np.random.default_rng(0).standard_normal((120, 2)).astype("float32")
    labels = np.repeat([0, 1, 2], [90, 20, 10])
    found = l2t_ray.fit(
        torch.nn.Linear(2, 3),
        train=(inputs, labels),
        validation=(inputs[::2], np.arange(60) % 3),
        task=task,
        method={"name": "l2t_dln", "teacher": "adam"},
        loss=COUNTED,
        num_rounds=2,
        num_steps=2,
        batch_size=10,
        val_batch_size=20,
    )
    assert found.loss is not None and isinstance(found.loss.family, AdjustedLoss)
    assert np.allclose(found.loss.family.spec.shifts, np.log([90 / 120, 20 / 120, 10 / 120]))
    assert {"shift_0", "shift_1", "shift_2"} <= found.rows[-1].keys()
