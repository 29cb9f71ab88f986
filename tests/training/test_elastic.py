"""A run that goes on with more or fewer workers ends where it would have ended, to the rounding of sums.

Two workers are two threads here; real ones, and losing one in mid-run, are in tests/distributed/test_machines.py.
"""

import threading
from pathlib import Path

import pytest
import torch
from replicas import TeacherInEachThread

from l2t_ray.assembly.images import load_dataset
from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.source import ImageSource
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import load
from l2t_ray.training.checkpoint import CheckpointStore

DIGITS = Path(__file__).parents[2] / "configs/digits.yaml"
OVERRIDES = [
    "controls=[]",
    "student={name: resnet8, norm: group}",
    "training={num_steps: 2, batch_size: 9, val_batch_size: 17, learning_rate: 0.02}",
    "training.num_rounds=8",
    "training.checkpoint_every=3",
    "training.eval_every=8",
    "method.loss={hidden: 8, init: cross_entropy}",
    "method.teacher={name: lstm, cells: [4], horizon: 4}",
    "ray.enabled=false",
]
"""Rates at which training does not amplify rounding much (tests/distributed/test_invariance.py)."""

ALONE = threading.Lock()
"""First weights are drawn from torch's own generator, of which the threads of this process have one together."""


class Stopped(Exception):
    pass


def train(config, directory, group, stop_after=None):
    with ALONE:
        run = build_run(
            config,
            group=group,
            device=torch.device("cpu"),
            make_teacher=lambda *given: TeacherInEachThread(build_teacher(*given), group),
        )
    group.sum(torch.zeros(1))  # a round of one thread would move the stream from which another draws its weights
    store = CheckpointStore(directory)
    num_rounds = 0

    def on_row(row):
        nonlocal num_rounds
        num_rounds += 1
        if num_rounds == stop_after:
            raise Stopped

    return run.train(start=store.latest(), store=store, on_row=on_row)


@pytest.fixture(scope="module")
def config():
    return load(DIGITS, OVERRIDES)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("whole"), SingleProcess())


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_workers(config, whole, tmp_path, run_on_two_workers, first):
    def on(num_workers, **options):
        if num_workers == 1:
            return train(config, tmp_path, SingleProcess(), **options)
        return run_on_two_workers(lambda group: train(config, tmp_path, group, **options))[0]

    with pytest.raises(Stopped):
        on(first, stop_after=4)
    end = on(3 - first)
    assert [row["round"] for row in end.rows] == list(range(8))
    assert distance(end.state.student.theta, whole.state.student.theta) <= 1e-5
    assert distance(end.teacher["phi"], whole.teacher["phi"]) <= 1e-5
    assert distance(end.teacher["rule"]["psi"], whole.teacher["rule"]["psi"]) <= 1e-5
    assert not torch.equal(end.state.student.theta, whole.state.student.theta)  # the sums were grouped otherwise


def test_two_workers_find_the_labels_suspicious_that_one_finds(tmp_path, run_on_two_workers):
    config = load(DIGITS, [*OVERRIDES, "method.loss.memory=1", "training.num_rounds=20"])
    source = ImageSource(config, load_dataset(config.data), group=SingleProcess(), device=torch.device("cpu"))
    one = train(config, tmp_path / "one", SingleProcess())
    two = run_on_two_workers(lambda group: train(config, tmp_path / "two", group))
    expected, *others = (suspects_of(config.method, end, source) for end in (one, *two))
    assert expected is not None and expected.differs.any() and expected.scores.isnan().any()

    def by_place(found, values):
        return values[found.places.argsort()]

    for found in others:
        assert torch.equal(by_place(found, found.suggested), by_place(expected, expected.suggested))
        scores = by_place(found, found.scores), by_place(expected, expected.scores)
        torch.testing.assert_close(*scores, atol=1e-5, rtol=0, equal_nan=True)
    assert torch.equal(others[0].places, others[1].places)
