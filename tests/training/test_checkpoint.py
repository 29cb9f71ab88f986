"""Checkpoints: whole or not there, and never trusted when damaged."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.training.checkpoint import Checkpoint, CheckpointStore
from l2t_ray.training.checkpoint_names import in_order, newer
from l2t_ray.training.rows_file import NAMES


def make_cut(round_index, arm="l2t_dln"):
    generator = torch.Generator().manual_seed(round_index)
    theta = torch.randn(5, generator=generator)
    student = StudentState(theta, theta * 2, {"norm.running_mean": theta[:2].clone()})
    rows = [{"arm": arm, "round": i, "val_error": 0.1 + i / 3} for i in range(round_index)]
    teacher = {"version": round_index, "phi": torch.randn(4, generator=generator), "rule": {"states": [(theta, theta)]}}
    snapshots = {arm: {0: torch.zeros(4)}}
    return Checkpoint(arm, round_index, MethodState(student, {"centers": torch.eye(2)}), teacher, rows, snapshots)


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


def test_what_an_optimizer_carries_comes_back(tmp_path):
    store, cut = CheckpointStore(tmp_path), make_cut(3)
    carried = {"second_moment": torch.rand(5), "num_steps": torch.tensor(7)}
    student = cut.state.student._replace(carried=carried)
    store.save(replace(cut, state=cut.state._replace(student=student), finished={"cross_entropy": student}))
    latest = store.latest()
    for found in (latest.state.student.carried, latest.finished["cross_entropy"].carried):
        assert found.keys() == carried.keys() and all(torch.equal(found[name], carried[name]) for name in carried)
        assert found["num_steps"].dtype == torch.int64


def test_a_student_of_an_earlier_version_carries_nothing(tmp_path):
    path = CheckpointStore(tmp_path).save(make_cut(3))
    student = torch.load(path / "student.pt", weights_only=True)
    assert student.pop("carried") == {}
    torch.save(student, path / "student.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["student.pt"] = hashlib.sha256((path / "student.pt").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    latest = CheckpointStore(tmp_path).latest()
    assert_same(latest, make_cut(3))
    assert latest.state.student.carried == {}


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
        checkpoint = store.latest()
    assert_same(checkpoint, make_cut(1))


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


@pytest.mark.parametrize("tensors", [[], [torch.zeros(10)], [torch.zeros(100_000)] * 3])
def test_a_full_disk_is_called_so(tmp_path, monkeypatch, tensors):
    """`torch.save` reports one as a RuntimeError of its own; `/dev/full` is one."""
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *_: save(tensors, "/dev/full"))
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*: no space left on the disk"):
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


def damaged(path):
    content = path.read_bytes()
    path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])


@pytest.mark.parametrize("file", NAMES)
def test_damage_to_one_copy_of_the_rows_costs_nothing_and_is_mended(tmp_path, file):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    damaged(store.save(make_cut(2)) / file)
    again = CheckpointStore(tmp_path)
    assert_same(again.latest(), make_cut(2))
    newest = again.save(make_cut(3))
    assert len({(newest / name).read_bytes() for name in NAMES}) == 1
    assert_same(CheckpointStore(tmp_path).latest(), make_cut(3))


def test_damage_to_both_copies_at_their_ends_is_noticed_and_costs_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    for name in NAMES:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-2])
    with pytest.warns(UserWarning, match=r"rows\.jsonl does not match its checksum.*using the one before"):
        assert_same(CheckpointStore(tmp_path).latest(), make_cut(1))


def test_each_checkpoint_writes_its_new_rows_alone(tmp_path, monkeypatch):
    """The bytes that all checkpoints of a run write for rows are those of the rows, once for each copy."""
    written = 0
    write = os.write

    def counting(descriptor, content):
        nonlocal written
        written += len(content)
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", counting)
    store = CheckpointStore(tmp_path, keep=1)
    for index in range(5, 205, 5):
        path = store.save(make_cut(index))
    assert written == sum((path / name).stat().st_size for name in NAMES)
    assert len((path / NAMES[0]).read_text().splitlines()) == 200
    assert_same(CheckpointStore(tmp_path).latest(), make_cut(200))


def test_rows_of_a_moment_that_was_lost_are_cut_off(tmp_path):
    """The newest checkpoint is damaged; the rounds since the one before come out with other rows, of other times."""
    store = CheckpointStore(tmp_path)
    store.save(make_cut(2))
    damaged(store.save(make_cut(4)) / "student.pt")
    store = CheckpointStore(tmp_path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.latest().round == 2
    checkpoint = make_cut(3)
    checkpoint.rows[2]["seconds"] = 7.5
    store.save(checkpoint)
    assert CheckpointStore(tmp_path).latest().rows == checkpoint.rows
    assert in_order(path.name for path in tmp_path.iterdir()) == ["0000002-l2t_dln-000002", "0000003-l2t_dln-000003"]


def test_where_there_are_no_hard_links_rows_are_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    store = CheckpointStore(tmp_path)
    for index in (1, 2, 3):
        store.save(make_cut(index))
    assert_same(CheckpointStore(tmp_path).latest(), make_cut(3))


def test_a_copy_of_a_checkpoint_is_whole_by_itself(tmp_path):
    store = CheckpointStore(tmp_path / "a")
    store.save(make_cut(1))
    shutil.copytree(store.save(make_cut(2)), tmp_path / "b" / "0000002-l2t_dln-000002")
    shutil.rmtree(tmp_path / "a")
    assert_same(CheckpointStore(tmp_path / "b").latest(), make_cut(2))


@pytest.mark.parametrize("name", ["best", "best2", "0000009-l2t_dln-000009.bak", "zzz", "0000009"])
def test_directories_with_other_names_are_left_alone_and_not_counted(tmp_path, name):
    store = CheckpointStore(tmp_path, keep=1)
    shutil.copytree(store.save(make_cut(1)), tmp_path / name)
    for index in (2, 3):
        store.save(make_cut(index))
    assert store.latest().round == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "0000003-l2t_dln-000003"])


def test_a_damaged_one_that_is_newer_does_not_push_out_what_is_saved_now(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for index in (2, 4, 6):
        store.save(make_cut(index))
    for name in ("0000004-l2t_dln-000004", "0000006-l2t_dln-000006"):
        damaged(tmp_path / name / "student.pt")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="all 2 checkpoints"):
        CheckpointStore(tmp_path).latest()
    path = CheckpointStore(tmp_path, keep=2).save(make_cut(1))
    assert path.exists() and CheckpointStore(tmp_path).latest().round == 1


def test_names_are_in_order_of_time():
    """An arm that is given up in its first round comes after the end of the arm before it, whatever they are called."""
    names = ["0000010-b-000002", "0000009-b-000001", "0000008-mw_net-000008", "0000008-a-000000-diverged", "best"]
    assert in_order(names) == [names[2], names[3], names[1], names[0]]
    assert newer(names, names[3]) == [names[1], names[0]]
    assert in_order(["10000000-a-000001", "9999999-a-000001"]) == ["9999999-a-000001", "10000000-a-000001"]


def test_a_file_with_the_right_checksum_and_the_wrong_content_is_damage(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_cut(1))
    path = store.save(make_cut(2))
    torch.save({"theta": torch.zeros(1)}, path / "student.pt")
    sums = json.loads((path / "manifest.json").read_text())
    sums["student.pt"] = hashlib.sha256((path / "student.pt").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(sums))
    with pytest.warns(UserWarning, match=r"is damaged \(TypeError"):
        assert store.latest().round == 1


FINGERPRINT = {"settings": {"seed": 0, "lr": 0.1}, "data": {"images": "abc"}, "code": {"torch": "1"}}


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("settings", {"seed": 1}, "seed is 0 there and 1 here"),
        ("settings", {"depth": 3}, "depth is not set there and 3 here"),
        ("data", {"images": "abd"}, "the images are others"),
        ("code", {"torch": "2"}, None),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused(tmp_path, section, change, said):
    CheckpointStore(tmp_path, fingerprint=FINGERPRINT).save(make_cut(1))
    store = CheckpointStore(tmp_path, fingerprint=FINGERPRINT | {section: FINGERPRINT[section] | change})
    if said is None:
        assert store.latest().round == 1
    else:
        with pytest.raises(UserError, match=f"holds checkpoints of another experiment of this name: {said}"):
            store.latest()


def test_a_checkpoint_can_be_read_by_name(tmp_path):
    store = CheckpointStore(tmp_path)
    first = store.save(make_cut(1))
    damaged(store.save(make_cut(2)) / "student.pt")
    assert_same(store.read(first.name), make_cut(1))
    with pytest.raises(UserError, match=r"is damaged \(student\.pt does not match"):
        store.read("0000002-l2t_dln-000002")
