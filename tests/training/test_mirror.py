"""Checkpoints on a filesystem that is not this machine's: what is put there comes back on another machine's disk."""

import json
import os
from datetime import datetime

import pytest
import torch
from pyarrow.fs import FileSelector, LocalFileSystem, SubTreeFileSystem, _MockFileSystem

from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.run import Experiment
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore
from l2t_ray.training.mirror import Mirror


@pytest.fixture(params=["mock", "subtree"])
def mirror(request, tmp_path):
    """pyarrow's own filesystem in memory, and one below a folder."""
    if request.param == "mock":
        return Mirror(_MockFileSystem(datetime(2026, 1, 1)), "bucket/run/checkpoints")
    (tmp_path / "remote").mkdir()
    return Mirror(SubTreeFileSystem(str(tmp_path / "remote"), LocalFileSystem()), "run/checkpoints")


def make_cut(round: int) -> Checkpoint:
    student = StudentState(torch.full((3,), float(round)), torch.zeros(3), {})
    rows = [{"arm": "a", "round": i} for i in range(round)]
    return Checkpoint("a", round, MethodState(student, {}), None, rows)


def test_another_machine_begins_from_the_newest_copy(tmp_path, mirror):
    here, there = (CheckpointStore(tmp_path / name / "checkpoints", keep=2, mirror=mirror) for name in ("a", "b"))
    assert there.latest() is None
    for round in (1, 2, 3):
        here.save(make_cut(round))
    checkpoint = there.latest()
    assert (
        checkpoint is not None
        and checkpoint.round == 3
        and torch.equal(checkpoint.state.student.theta, torch.full((3,), 3.0))
    )
    assert len(list((tmp_path / "b/checkpoints").iterdir())) == 1  # the one that is needed
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoints"]
    there.save(make_cut(4))
    newest = here.latest()
    assert newest is not None and newest.round == 4


def test_what_a_killed_process_had_fetched_is_swept_and_nothing_else(tmp_path, mirror):
    path = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror).save(make_cut(1))
    dead, alive = 2**22 + 1, os.getppid()  # the first is more than the system gives
    names = [f".fetched.{path.name}.{dead}", f".fetched.{path.name}.{alive}", f".fetched.notes.{dead}"]
    for name in names:
        (tmp_path / "b" / name).mkdir(parents=True)
    assert CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest() is not None
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted([*names[1:], "checkpoints"])


def test_a_copy_without_its_manifest_is_not_there(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    mirror._files.delete_file(f"{mirror._path}/{path.name}/manifest.json")
    checkpoint = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.round == 1
    store.save(make_cut(2))  # the round is done again
    checkpoint = CheckpointStore(tmp_path / "c/checkpoints", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.round == 2


def test_a_copy_that_was_damaged_on_the_way_is_passed_over(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    with mirror._files.open_output_stream(f"{mirror._path}/{path.name}/progress.json") as stream:
        stream.write(b"[]")
    with pytest.warns(UserWarning, match="is damaged"):
        checkpoint = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.round == 1


def test_each_copy_adds_its_own_rows_to_storage(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a/checkpoints", keep=1, mirror=mirror)
    for round in (2, 3, 5):
        path = store.save(make_cut(round))
    found = mirror._files.get_file_info(FileSelector(mirror._rows))
    assert len(found) == 3
    assert sum(info.size for info in found) == (path / "rows.jsonl").stat().st_size
    checkpoint = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.rows == make_cut(5).rows


def test_rows_that_another_history_left_in_storage_are_not_mixed_in(tmp_path, mirror):
    """A machine falls back by a checkpoint, and its rounds then have other times."""
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    for round in (1, 2):
        store.save(make_cut(round))
    for file in [*(tmp_path / "a/checkpoints/0000002-a-000002").glob("*.pt")]:
        file.write_bytes(b"")
    mirror.forget("0000002-a-000002")
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.latest().round == 1
    checkpoint = make_cut(3)
    checkpoint.rows[1]["seconds"] = 2.5
    store.save(checkpoint)
    other = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert other is not None and other.rows == checkpoint.rows


def test_a_damaged_checkpoint_is_fetched_again(tmp_path, mirror):
    path = CheckpointStore(tmp_path / "a", mirror=mirror).save(make_cut(2))
    for name in ("student.pt", "rows.jsonl", "rows.copy.jsonl"):
        (path / name).write_bytes(b"")
    checkpoint = CheckpointStore(tmp_path / "a", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.round == 2 and checkpoint.rows == make_cut(2).rows


def test_storage_that_is_added_gets_what_is_here(tmp_path, mirror):
    for round in (1, 2):
        CheckpointStore(tmp_path / "a").save(make_cut(round))
    store = CheckpointStore(tmp_path / "a", mirror=mirror)
    newest = store.latest()
    assert newest is not None
    store.share(newest)
    assert mirror.names() == ["0000002-a-000002"]
    checkpoint = CheckpointStore(tmp_path / "b", mirror=mirror).latest()
    assert checkpoint is not None and checkpoint.rows == newest.rows
    store.save(make_cut(3))
    assert mirror.names() == ["0000002-a-000002", "0000003-a-000003"]


def test_a_run_that_began_at_once_under_the_same_name_is_not_written_over(tmp_path, mirror):
    """Storage was empty when both looked."""
    here, there = (
        CheckpointStore(tmp_path / str(seed), mirror=mirror, fingerprint={"settings": {"seed": seed}})
        for seed in (0, 1)
    )
    assert here.latest() is None and there.latest() is None
    here.save(make_cut(1))
    with pytest.raises(UserError, match="another experiment of this name: seed is 0 there and 1 here"):
        there.save(make_cut(1))
    checkpoint = CheckpointStore(tmp_path / "c", mirror=mirror, fingerprint={"settings": {"seed": 0}}).latest()
    assert checkpoint is not None and checkpoint.round == 1


def test_directories_with_other_names_in_storage_are_left_alone(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a", keep=1, mirror=mirror)
    store.save(make_cut(1))
    mirror._files.create_dir(f"{mirror._path}/best")
    store.save(make_cut(2))
    names = {info.base_name for info in mirror._files.get_file_info(FileSelector(mirror._path))}
    assert names == {"best", "0000002-a-000002"}


def test_a_place_that_is_none_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="storage=nowhere://x cannot be used"):
        Mirror.at("nowhere://x")


def test_storage_that_is_gone_is_a_users_mistake(tmp_path):
    class Gone(Mirror):
        def names(self):
            raise OSError("no route to host")

    store = CheckpointStore(tmp_path / "a", mirror=Gone(LocalFileSystem(), str(tmp_path)))
    with pytest.raises(UserError, match=r"cannot write the checkpoint .* no route to host"):
        store.save(make_cut(1))
    with pytest.raises(UserError, match="cannot read the checkpoints in storage: no route to host"):
        store.latest()


def test_a_run_goes_on_where_only_the_storage_is_common(tmp_path):
    """The whole way, with `storage` as a user sets it."""
    common = ["ray.enabled=false", "tracking.mlflow=false", "controls=[]", "student.name=lenet", "name=run"]
    short = ["training={num_rounds: 3, num_steps: 2, checkpoint_every: 1}", "method.loss.init=released"]
    where = f"storage=file://{tmp_path}/bucket"

    def experiment(machine: str) -> Experiment:
        return Experiment.from_yaml("configs/digits.yaml", [*common, *short, where, f"runs={tmp_path / machine}"])

    first = experiment("first").run(quiet=True)
    (copied,) = list((tmp_path / "bucket/run/checkpoints").glob("*000003"))
    assert json.loads((copied / "progress.json").read_text())["round"] == 3
    again = experiment("second").run(quiet=True)  # nothing is left to train, and everything there to write
    assert again.directory != first.directory
    assert again.summaries == first.summaries
