"""A lock in a folder of one's own: it says who holds it, ends, and touches nobody else's file."""

import os
import signal
import stat

import pytest

from l2t_ray.data.lock import one_at_a_time
from l2t_ray.interfaces import UserError


@pytest.fixture
def holder(tmp_path):
    """The process id of another process that holds `x.lock`."""
    told, tells = os.pipe()
    pid = os.fork()  # a new interpreter would take seconds to import torch
    if pid == 0:
        with take(tmp_path):
            os.write(tells, b"held")
            signal.pause()
    assert os.read(told, 4) == b"held"
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def take(tmp_path, **options):
    return one_at_a_time(tmp_path / "locks", "x.lock", doing="converting", **options)


def test_waiting_says_for_whom_and_ends(tmp_path, holder):
    who = rf"process {holder} on \S+"
    with (
        pytest.warns(UserWarning, match=rf"waiting for {who}, which is converting"),
        pytest.raises(UserError, match=rf"{who} has been converting for .* then run again"),
        take(tmp_path, says_after=0.1, gives_up_after=0.3),
    ):
        pytest.fail("held by two")


def test_it_is_free_when_its_holder_is_gone(tmp_path, holder):
    os.kill(holder, signal.SIGKILL)
    with take(tmp_path, gives_up_after=5.0):
        assert (tmp_path / "locks" / "x.lock").read_text().startswith(f"process {os.getpid()} on ")
    with take(tmp_path, gives_up_after=0.0):
        pass


def test_it_lies_in_a_folder_of_ones_own(tmp_path):
    with take(tmp_path):
        assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "locks" / "x.lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_planted_link_is_not_followed(tmp_path, plant):
    (tmp_path / "locks").mkdir(mode=0o700)
    (tmp_path / "precious").write_text("precious")
    plant(tmp_path / "precious", tmp_path / "locks" / "x.lock")
    with take(tmp_path):
        assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("spoil", [lambda locks: locks.write_text("a file"), lambda locks: locks.mkdir(mode=0o777)])
def test_without_a_safe_place_everybody_goes_on(tmp_path, spoil):
    mask = os.umask(0)
    try:
        spoil(tmp_path / "locks")
    finally:
        os.umask(mask)
    with take(tmp_path, gives_up_after=0.0), take(tmp_path, gives_up_after=0.0):
        assert not (tmp_path / "locks" / "x.lock").exists()
