"""A run's directory belongs to one process at a time, and a run that never began leaves none."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.training import place
from l2t_ray.training.place import LOCK, taken

HOLDER = """
import os, sys, time
from pathlib import Path
from l2t_ray.training.place import taken

with taken(Path(sys.argv[1]), is_new=False) as place:
    place.has_begun = True
    print("held", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(place, "PATIENCE_S", 0.1)


@pytest.fixture
def other_process(tmp_path):
    """Another process in `tmp_path / "run"`, and a function that kills it without warning."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"

    def kill():
        process.kill()
        process.wait()

    yield process, kill
    kill()


def test_a_second_process_is_told_who_is_there_and_touches_nothing(tmp_path, other_process):
    process, _ = other_process
    before = (tmp_path / "run" / LOCK).read_bytes()
    with pytest.raises(UserError) as refused, taken(tmp_path / "run", is_new=False):
        pass
    assert f"is in use by process {process.pid} on {socket.gethostname()} since 20" in str(refused.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert (tmp_path / "run" / LOCK).read_bytes() == before


def test_the_directory_of_a_dead_process_is_taken_over(tmp_path, other_process):
    other_process[1]()
    assert (tmp_path / "run" / LOCK).exists()  # it could not tidy up
    with taken(tmp_path / "run", is_new=False):
        facts = json.loads((tmp_path / "run" / LOCK).read_text())
        assert facts["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []  # was there before, and stays


def test_two_runs_in_one_process_cannot_share_a_directory_either(tmp_path):
    with (
        taken(tmp_path / "run", is_new=False),
        pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
        taken(tmp_path / "run", is_new=False),
    ):
        pass


@pytest.mark.parametrize("is_alive", [True, False])
def test_where_the_file_system_has_no_locks_the_file_says_who_is_there(tmp_path, monkeypatch, is_alive):
    def no_locks(*_):
        raise OSError("No locks available")

    monkeypatch.setattr(place.fcntl, "flock", no_locks)
    pid = os.getpid() if is_alive else 2**22 + 1  # more than the system gives
    (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "since": "today"}))
    if is_alive:
        with pytest.raises(UserError, match=r"in use by process \d+"), taken(tmp_path, is_new=False):
            pass
    else:
        with taken(tmp_path, is_new=False):
            pass


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), taken(tmp_path / "runs/a", is_new=False) as here:
        (here.directory / "config.yaml").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_began_stays(tmp_path):
    with taken(tmp_path / "runs/a", is_new=False) as here:
        here.has_begun = True
    with taken(tmp_path / "runs/b", is_new=False) as here:
        (here.directory / "checkpoints/0000001-a-000001").mkdir(parents=True)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b"]


def test_a_new_directory_is_nobody_elses(tmp_path):
    names = []
    with taken(tmp_path / "run", is_new=True) as first, taken(tmp_path / "run", is_new=True) as second:
        names = [first.directory.name, second.directory.name]
        first.has_begun = True
    assert names == ["run", "run-2"]
    with taken(tmp_path / "run", is_new=True) as third:
        assert third.directory.name == "run-2"


def put(path, kind):
    """Something at a path that is neither a directory nor, but for one kind, a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "a file":
            path.touch()
        case "a folder":
            path.mkdir()
        case "a named pipe":
            os.mkfifo(path)
        case "a link in a loop":
            path.symlink_to(path)
        case _:
            path.symlink_to("missing")


@pytest.mark.parametrize("kind", ["a file", "a named pipe", "a link in a loop", "a link to missing, which cannot"])
@pytest.mark.parametrize("where", ["runs", "runs/x", "runs/x/checkpoints"])
@pytest.mark.parametrize("is_new", [True, False])
def test_what_stands_where_a_run_needs_a_directory_is_named_and_stays(tmp_path, where, kind, is_new):
    put(tmp_path / where, kind)
    with (
        pytest.raises(UserError, match=rf"{tmp_path / where} is {kind}.*needs a directory there"),
        taken(tmp_path / "runs/x", is_new=is_new),
    ):
        pass
    assert os.path.lexists(tmp_path / where)


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a link in a loop", "a link to missing, which cannot"])
def test_a_lock_that_is_no_file_is_called_what_it_is(tmp_path, kind):
    put(tmp_path / "run" / LOCK, kind)
    with pytest.raises(UserError, match=rf"{LOCK} is {kind}.*plain file"), taken(tmp_path / "run", is_new=False):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    with pytest.raises(UserError, match=rf"is a link to {victim}, and"), taken(tmp_path / "run", is_new=False):
        pass
    assert victim.read_text() == "precious"


def test_directories_above_that_hold_something_else_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    Path(tmp_path / "runs/note").touch()
    with taken(tmp_path / "runs/deep/a", is_new=False):
        pass
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["note"]
