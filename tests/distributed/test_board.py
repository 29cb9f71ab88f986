"""Who is named when a sum over workers fails: the worker that hangs."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from l2t_ray.distributed import board as boards
from l2t_ray.distributed.board import Board
from l2t_ray.parallel.group import ProcessGroup


def test_workers_that_say_nothing_are_silent_and_what_was_said_long_ago_does_not_count(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(boards, "time", SimpleNamespace(monotonic=lambda: now))
    board = Board()
    assert board.silent(3) == [0, 1, 2]
    board.waited(0)
    board.waited(2)
    assert board.silent(3) == [1]
    now += boards.RECENT_S + 1
    board.waited(1)
    assert board.silent(3) == [0, 2]


@pytest.mark.parametrize(
    ("problem", "silent", "raised", "message"),
    [
        ("Timed out waiting 5000ms for recv operation", [2], TimeoutError, r"ray\.timeout_s=5 s .*: worker 2 hangs"),
        # Worker 0 gave up a moment before this one, and closed its connections.
        ("Connection closed by peer", [2], TimeoutError, r"worker 2 hangs"),
        ("Timed out waiting 5000ms for recv operation", [], TimeoutError, r"another worker hangs"),
        ("Connection closed by peer", [], RuntimeError, r"Connection closed by peer"),
    ],
)
def test_a_sum_that_fails_names_the_worker_that_hangs(monkeypatch, problem, silent, raised, message):
    def all_reduce(tensor):
        raise RuntimeError(problem)

    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    group = ProcessGroup(timeout_s=5.0, find_silent=lambda rank, size: silent if (rank, size) == (1, 3) else [])
    with pytest.raises(raised, match=message):
        group.sum(torch.zeros(1))
