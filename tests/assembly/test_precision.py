"""A job trains its student in bfloat16 as `fit` does: resumed to the bit, on two workers up to rounding."""

import pytest
import torch
from replicas import run_alone, run_interrupted, run_on_both

from l2t_ray.assembly.run import build_run, build_trainee
from l2t_ray.assembly.sources import source_of
from l2t_ray.interfaces import UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import validate

TRAINING = {"num_rounds": 4, "num_steps": 2, "batch_size": 20, "val_batch_size": 20, "checkpoint_every": 1}


def config(precision="bfloat16", *, engine="store", **student):
    return validate(
        {
            "data": {"name": "digits", "num_train": 80, "num_validation": 40, "augment": "none"},
            "student": {"name": "resnet8", "norm": "group"} | student,
            "training": TRAINING | {"precision": precision},
            "method": {"name": "l2t_dln", "loss": {"hidden": 4}, "teacher": "adam", "engine": engine},
            "controls": [],
            "ray": {"enabled": False},
        },
        source="a test",
    )


@pytest.fixture(scope="module")
def whole():
    return run_alone(config())


def norms(end):
    return torch.tensor([row["hypergradient_norm"] for row in end.rows])


def theta(end):
    return next(iter(end.finished.values())).theta


def test_it_trains_close_to_single_precision_and_carries_single_precision(whole):
    exact = run_alone(config("float32"))
    assert theta(whole).dtype == torch.float32 and not torch.equal(theta(whole), theta(exact))
    torch.testing.assert_close(norms(whole)[0], norms(exact)[0], rtol=0.1, atol=0)


def test_a_run_that_is_resumed_is_the_same_to_the_bit(whole, tmp_path):
    again = run_interrupted(config(), tmp_path, after=2)
    assert torch.equal(theta(again), theta(whole)) and torch.equal(norms(again), norms(whole))


def test_two_workers_take_the_steps_of_one_up_to_its_rounding(whole, run_on_two_workers):
    first, second = run_on_both(config(), run_on_two_workers)
    assert torch.equal(theta(first), theta(second))
    assert (theta(first) - theta(whole)).norm() < 0.02 * theta(whole).norm()


def test_statistics_of_all_workers_go_with_it():
    trained = run_alone(config(norm="batch", sync_batchnorm=True))
    assert theta(trained).isfinite().all() and norms(trained).gt(0).all()


def test_what_torch_does_not_cast_is_refused_in_a_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"training\.precision .*'bfloat16', and torch does not cast in forward mode"):
        config(engine="forward_over_reverse")
    own = config()
    source = source_of(own)
    monkeypatch.setattr("l2t_ray.assembly.run.build_student", lambda *_, **__: torch.nn.Linear(2, 2).double())
    with pytest.raises(UserError, match=r"^training\.precision=bfloat16 is for a model of float32 parameters, got fl"):
        build_trainee(own, source, SingleProcess())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_operations_are_cast_where_that_is_set_and_outputs_are_not(precision):
    run = build_run(config(precision), group=SingleProcess(), device=torch.device("cpu"))
    seen = []
    run.student.module.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    theta, buffers = run.student.initial(), run.student.initial_buffers()
    outputs = run.student(theta, buffers, run.data.round(0).train[0].inputs, training=False)
    assert seen == [precision == "bfloat16"] and outputs.dtype == torch.float32
