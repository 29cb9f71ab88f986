"""Checkpoints on a filesystem that is not this machine's: what is put there comes back on another machine's disk."""

import json
from datetime import datetime

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem, _MockFileSystem

from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.run import Experiment
from l2t_ray.training.checkpoint import CheckpointStore, Cut
from l2t_ray.training.mirror import Mirror


@pytest.fixture(params=["mock", "subtree"])
def mirror(request, tmp_path):
    """pyarrow's own filesystem in memory, and one below a folder."""
    if request.param == "mock":
        return Mirror(_MockFileSystem(datetime(2026, 1, 1)), "bucket/run/checkpoints")
    (tmp_path / "remote").mkdir()
    return Mirror(SubTreeFileSystem(str(tmp_path / "remote"), LocalFileSystem()), "run/checkpoints")


def make_cut(round: int) -> Cut:
    student = StudentState(torch.full((3,), float(round)), torch.zeros(3), {})
    rows = [{"arm": "a", "round": i} for i in range(round)]
    return Cut("a", round, MethodState(student, {}), None, rows)


def test_another_machine_begins_from_the_newest_copy(tmp_path, mirror):
    here, there = (CheckpointStore(tmp_path / name / "checkpoints", keep=2, mirror=mirror) for name in ("a", "b"))
    assert there.latest() is None
    for round in (1, 2, 3):
        here.save(make_cut(round))
    cut = there.latest()
    assert cut is not None and cut.round == 3 and torch.equal(cut.state.student.theta, torch.full((3,), 3.0))
    assert len(list((tmp_path / "b/checkpoints").iterdir())) == 1  # the one that is needed
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoints"]
    there.save(make_cut(4))
    newest = here.latest()
    assert newest is not None and newest.round == 4


def test_a_copy_without_its_manifest_is_not_there(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    mirror._files.delete_file(f"{mirror._path}/{path.name}/manifest.json")
    cut = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert cut is not None and cut.round == 1
    store.save(make_cut(2))  # the round is done again
    cut = CheckpointStore(tmp_path / "c/checkpoints", mirror=mirror).latest()
    assert cut is not None and cut.round == 2


def test_a_copy_that_was_damaged_on_the_way_is_passed_over(tmp_path, mirror):
    store = CheckpointStore(tmp_path / "a/checkpoints", mirror=mirror)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    with mirror._files.open_output_stream(f"{mirror._path}/{path.name}/progress.json") as stream:
        stream.write(b"[]")
    with pytest.warns(UserWarning, match="is damaged"):
        cut = CheckpointStore(tmp_path / "b/checkpoints", mirror=mirror).latest()
    assert cut is not None and cut.round == 1


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
    short = ["training={num_rounds: 3, num_steps: 2, checkpoint_every: 1}", "method.loss_network.init=released"]
    where = f"storage=file://{tmp_path}/bucket"

    def experiment(machine: str) -> Experiment:
        return Experiment.from_yaml("configs/digits.yaml", [*common, *short, where, f"runs={tmp_path / machine}"])

    first = experiment("first").run(quiet=True)
    (copied,) = list((tmp_path / "bucket/run/checkpoints").glob("*000003"))
    assert json.loads((copied / "progress.json").read_text())["round"] == 3
    again = experiment("second").run(quiet=True)  # nothing is left to train, and everything there to write
    assert again.directory != first.directory
    assert again.summaries == first.summaries
