"""What a worker does when the teacher is lost, late or taken: with a service in this process instead of an actor."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.distributed import remote_teacher
from l2t_ray.distributed.remote_teacher import RemoteTeacher, TeacherLostError
from l2t_ray.distributed.teacher_actor import StaleAttemptError, TeacherService
from l2t_ray.parallel.group import SingleProcess

SIZE = 5


class Actor:
    """Looks like the handle of a teacher actor. `die` loses what it holds, and answers to whoever is waiting."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.restart()

    def restart(self):
        self.service, self.is_alive = TeacherService(lambda: LocalTeacher(torch.ones(SIZE), AdamRule(SIZE))), True

    def die(self):
        self.is_alive = False

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *arguments: self._sent(method, arguments))

    def _sent(self, method, arguments):
        if not self.is_alive:
            return None
        return asyncio.run_coroutine_threadsafe(getattr(self.service, method)(*arguments), self.loop)


@pytest.fixture
def actor(monkeypatch):
    actor = Actor()
    actor.killed = 0

    def get(reference, timeout):
        if reference is None:
            raise ActorUnavailableError("gone", None)
        try:
            return reference.result(timeout)
        except TimeoutError:
            raise GetTimeoutError from None
        except Exception as error:
            raise RayTaskError("propose", "", error) from None

    def kill(handle, no_restart):
        assert handle is actor and not no_restart
        actor.killed += 1

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(remote_teacher, "_collective_device", lambda: "cpu")
    yield actor
    actor.loop.call_soon_threadsafe(actor.loop.stop)


def begun(actor, group=None, timeout_s=5.0):
    teacher = RemoteTeacher(actor, group or SingleProcess(), timeout_s=timeout_s)
    teacher.begin(None)
    return teacher


def test_a_teacher_that_came_back_empty_is_begun_again(actor):
    teacher = begun(actor)
    state = teacher.state_dict()
    first = teacher.propose(0, torch.ones(SIZE), 0.5)
    teacher.learn(0)
    actor.restart()
    with pytest.raises(TeacherLostError, match="without its memory"):
        teacher.propose(1, torch.ones(SIZE), 0.5)
    teacher.begin(state)
    again = teacher.propose(0, torch.ones(SIZE), 0.5)
    assert again.version == first.version and torch.equal(again.phi, first.phi)


def test_beginning_waits_for_a_teacher_that_is_being_restarted(actor):
    actor.die()
    threading.Timer(0.5, actor.restart).start()
    assert begun(actor).read().version == 0


def test_a_teacher_that_never_comes_back_is_given_up(actor):
    actor.die()
    with pytest.raises(TeacherLostError):
        begun(actor, timeout_s=0.3)


def test_a_group_that_was_replaced_does_not_begin_again(actor):
    old = begun(actor)
    begun(actor)
    with pytest.raises(StaleAttemptError):
        old.propose(0, torch.ones(SIZE), 0.5)


def test_workers_leave_together_when_one_misses_its_answer(actor, run_on_two_workers):
    """Rank 0 has its answer when the teacher dies, rank 1 has not: alone in the next collective, rank 0 would hang."""

    def work(group):
        teacher = begun(actor, group)
        if group.rank == 1:
            get = teacher._get

            def missed(reference):
                get(reference)
                raise TeacherLostError("the teacher died")

            teacher._get = missed
        with pytest.raises(TeacherLostError):
            teacher.propose(0, torch.ones(SIZE), 0.5)
        return group.sum(torch.ones(1)).item()  # in step: both are here

    assert run_on_two_workers(work) == [2, 2]


def test_who_hangs_is_named(actor):
    group = SimpleNamespace(rank=0, size=3, sum=lambda tensor: tensor)
    teacher = begun(actor, group, timeout_s=0.5)
    asyncio.run_coroutine_threadsafe(
        actor.service.propose(teacher._attempt, 2, 0, 0.5, np.ones(SIZE, np.float32)), actor.loop
    )
    with pytest.raises(TimeoutError, match=r"worker 1 sent nothing to the teacher within ray.timeout_s=0.5 s"):
        teacher.propose(0, torch.ones(SIZE), 0.5)
    assert not actor.killed


def test_a_teacher_that_hangs_is_restarted(actor):
    teacher = begun(actor, timeout_s=0.5)
    actor.loop.call_soon_threadsafe(threading.Event().wait, 3)
    with pytest.raises(TeacherLostError, match=r"the teacher did not answer within ray.timeout_s=0.5 s"):
        teacher.propose(0, torch.ones(SIZE), 0.5)
    assert actor.killed == 1
