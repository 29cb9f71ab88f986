"""Checkpoints: whole or not there, and never trusted when damaged."""

import os
import shutil

import pytest
import torch

from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.training.checkpoint import CheckpointStore, Cut


def make_cut(round_index, arm="l2t_dln"):
    generator = torch.Generator().manual_seed(round_index)
    theta = torch.randn(5, generator=generator)
    student = StudentState(theta, theta * 2, {"norm.running_mean": theta[:2].clone()})
    rows = [{"arm": arm, "round": i, "val_error": 0.1 + i / 3} for i in range(round_index)]
    teacher = {"version": round_index, "phi": torch.randn(4, generator=generator), "rule": {"states": [(theta, theta)]}}
    snapshots = {arm: {0: torch.zeros(4)}}
    return Cut(arm, round_index, MethodState(student, {"centers": torch.eye(2)}), teacher, rows, snapshots)


def assert_same(actual, expected):
    assert (actual.arm, actual.round, actual.rows) == (expected.arm, expected.round, expected.rows)
    assert torch.equal(actual.state.student.theta, expected.state.student.theta)
    assert torch.equal(actual.state.student.velocity, expected.state.student.velocity)
    for name, buffer in expected.state.student.buffers.items():
        assert torch.equal(actual.state.student.buffers[name], buffer)
    assert torch.equal(actual.state.extra["centers"], expected.state.extra["centers"])
    assert torch.equal(actual.teacher["phi"], expected.teacher["phi"])
    assert torch.equal(actual.teacher["rule"]["states"][0][0], expected.teacher["rule"]["states"][0][0])
    assert torch.equal(actual.snapshots["l2t_dln"][0], expected.snapshots["l2t_dln"][0])


def test_what_is_saved_comes_back(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", config="seed: 1\n")
    assert store.latest() is None
    path = store.save(make_cut(3))
    assert_same(store.latest(), make_cut(3))
    assert (path / "config.yaml").read_text() == "seed: 1\n"


def test_keeps_the_newest_and_leaves_no_temporary_files(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for index in (1, 2, 10):
        store.save(make_cut(index))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0000002-l2t_dln-000002", "0000010-l2t_dln-000010"]
    assert store.latest().round == 10


def test_saving_a_round_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(2))
    store.save(make_cut(2))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("file", ["student.pt", "teacher.pt", "method.pt", "arms.pt", "progress.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, damage):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    path = store.save(make_cut(2)) / file
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match=r"0000002-l2t_dln-000002 is damaged .*using the one before"):
        cut = store.latest()
    assert_same(cut, make_cut(1))


def test_says_so_when_all_are_damaged(tmp_path):
    store = CheckpointStore(tmp_path)
    (store.save(make_cut(1)) / "manifest.json").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(UserError, match=r"all 1 checkpoints in .* are damaged"),
    ):
        store.latest()


def test_an_interrupted_write_is_not_a_checkpoint_and_does_not_stop_the_next(tmp_path):
    store = CheckpointStore(tmp_path)
    complete = store.save(make_cut(1))
    shutil.copytree(complete, tmp_path / f".0000002-l2t_dln-000002.{os.getpid()}")
    assert store.latest().round == 1
    store.save(make_cut(2))
    assert store.latest().round == 2
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    """`torch.save` reports one as a RuntimeError."""

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 768 vs 662")

    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*unexpected pos"):
        store.save(make_cut(2))
    assert store.latest().round == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("manifest", ["[]", "{}"])
def test_an_incomplete_manifest_is_damage(tmp_path, manifest):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    (store.save(make_cut(2)) / "manifest.json").write_text(manifest)
    with pytest.warns(UserWarning, match="its manifest is incomplete"):
        assert store.latest().round == 1


def test_an_unwritable_place_is_a_user_error_and_loses_nothing(tmp_path):
    blocker = tmp_path / "checkpoints"
    blocker.write_text("a file where the directory should be")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*earlier checkpoints are untouched"):
        CheckpointStore(blocker).save(make_cut(1))
    assert blocker.read_text() == "a file where the directory should be"


def test_holds_no_pickled_code(tmp_path):
    """Everything loads with `weights_only=True`: a checkpoint from a stranger cannot run anything."""
    path = CheckpointStore(tmp_path).save(make_cut(1))
    for file in path.glob("*.pt"):
        torch.load(file, weights_only=True)
    assert len(list(path.glob("*.pt"))) == 4
