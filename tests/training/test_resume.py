"""A run that is stopped anywhere and resumed ends like the one that was not: bit for bit, in this process."""

import resource
from pathlib import Path

import pytest
import torch

from l2t_ray.assembly.run import build_run
from l2t_ray.interfaces import StoppedError, UserError
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import ExperimentConfig, load
from l2t_ray.tracking.metrics import TIMES
from l2t_ray.training.checkpoint import CheckpointStore

DIGITS = Path(__file__).parents[2] / "configs/digits.yaml"
NUM_ROUNDS, EVERY = 7, 2
OVERRIDES = [
    "student.name=lenet",
    "training={num_steps: 2, batch_size: 8, val_batch_size: 16, learning_rate: 0.05, momentum: 0.9}",
    f"training.num_rounds={NUM_ROUNDS}",
    f"training.checkpoint_every={EVERY}",
    "training.eval_every=7",
    "method.loss={hidden: 8, init: linear}",
    "method.teacher={name: lstm, cells: [4], horizon: 3, step_size: 0.1}",
    "data.augment=crop_flip",
]
VARIANTS = {
    "pipelined": [],
    "batch_norm": ["student.name=resnet8", "student.norm=batch"],  # running statistics are part of a checkpoint
    "lookahead": ["method.schedule=lookahead"],
    "adam": ["method.teacher=adam"],
    "adamw": ["training.optimizer=adamw", "training.momentum=0", "training.learning_rate=0.005", "training.clip=0.5"],
    "reweighted": ["method.reweight={refresh_every: 3}"],
    "memory": ["method.loss.memory=1"],
}


class Stopped(Exception):
    pass


def train(config: ExperimentConfig, directory: Path, stop_after: int | None = None):
    """The loop from the newest checkpoint on; stops dead when the row of that many rounds, of all arms, has come."""
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    store = CheckpointStore(directory, keep=2)
    start = store.latest()
    seen = 0 if start is None else len(start.rows)

    def on_row(row):
        nonlocal seen
        seen += 1
        if seen == stop_after:
            raise Stopped

    run.train(start=start, store=store, on_row=on_row)
    checkpoint = store.latest()
    assert checkpoint is not None
    return checkpoint


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same(a, b):
    for part in ("arm", "round", "state", "teacher", "rows", "snapshots", "finished", "memories"):
        assert same(getattr(a, part), getattr(b, part)), part


@pytest.fixture(scope="module", params=VARIANTS)
def undisturbed(request, tmp_path_factory):
    config = load(DIGITS, [*OVERRIDES, *VARIANTS[request.param]])
    return config, train(config, tmp_path_factory.mktemp(request.param))


# 7 rounds of cross-entropy, then 7 of the method, windows of three, checkpoints after rounds 2, 4, 6, 7 of each:
# before the first checkpoint; in the control; between the arms; before the method's first; within a window; at its end.
@pytest.mark.parametrize("stops", [(1, 5, 8, 12), (7, 10, 14)], ids=str)
def test_a_stopped_run_ends_like_an_undisturbed_one(undisturbed, tmp_path, stops):
    config, expected = undisturbed
    for stop in stops:
        with pytest.raises(Stopped):
            train(config, tmp_path, stop_after=stop)
    assert_same(train(config, tmp_path), expected)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = load(DIGITS, OVERRIDES)
    return config, train(config, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:99] + bytes([content[99] ^ 4]) + content[100:], id="bit_flipped"),
    ],
)
@pytest.mark.failure("checkpoint truncated, or a bit of it flipped", "this process")
def test_a_damaged_checkpoint_costs_rounds_and_no_more(plain, tmp_path, damage):
    config, expected = plain
    with pytest.raises(Stopped):
        train(config, tmp_path, stop_after=12)
    newest = sorted(tmp_path.iterdir())[-1] / "student.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"student\.pt does not match its checksum.*using the one before"):
        checkpoint = train(config, tmp_path)
    assert_same(checkpoint, expected)


@pytest.mark.failure("checkpoint directory full, then freed", "this process")
def test_a_full_disk_stops_the_run_and_costs_rounds_and_no_more(plain, tmp_path):
    """The operating system itself refuses to write on: files may not grow beyond a limit for a while."""
    config, expected = plain
    with pytest.raises(Stopped):
        train(config, tmp_path, stop_after=8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*earlier checkpoints are untouched"):
            train(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(train(config, tmp_path), expected)


@pytest.mark.failure("checkpoint directory cannot be written", "this process", ends="one sentence, exit code 2")
def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    config = load(DIGITS, OVERRIDES)
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        run.train(start=None, store=CheckpointStore(tmp_path / "checkpoints"), on_row=lambda row: None)


def test_all_workers_stop_after_the_round_in_which_one_was_asked_to(tmp_path, run_on_two_workers):
    config = load(DIGITS, [*OVERRIDES, "controls=[]", "method=cross_entropy"])

    def work(group):
        run = build_run(config, group=group, device=torch.device("cpu"))
        store = CheckpointStore(tmp_path)
        rounds_done = iter(range(1, NUM_ROUNDS + 1))

        def should_stop():
            return next(rounds_done) == 3 and group.rank == 1

        with pytest.raises(StoppedError, match="stopped after round 3 of 7 of cross_entropy"):
            run.train(start=None, store=store, on_row=lambda row: None, should_stop=should_stop)
        checkpoint = store.latest()
        return checkpoint and checkpoint.round

    assert run_on_two_workers(work) == [3, 3]


def test_a_checkpoint_of_another_student_is_one_sentence(plain, tmp_path):
    """Only a change of the code can bring it about: with other settings it is another experiment."""
    config, _ = plain
    with pytest.raises(Stopped):
        train(config, tmp_path, stop_after=3)
    other = load(DIGITS, [*OVERRIDES, "student={name: resnet8, norm: group}"])
    with pytest.raises(
        UserError, match=r"holds a student of [\d,]+ weights and 0 buffers and this version makes one of"
    ):
        train(other, tmp_path)
