"""The teacher's protocol under any order of messages: late ones, early ones, doubled ones, and ones that never come.

Hypothesis sends messages in whatever order it likes, of the current attempt and of ended ones. Beside the service runs
an oracle, a plain `LocalTeacher` that is only told what the protocol says must happen: it moves when the last share of
the current attempt has come, by the sum in order of rank, and is thrown back when a younger attempt begins. Whatever
was sent, the two are the same to the last bit, and every caller has the oracle's answer, a refusal, or waits with
reason.
"""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.teacher import LocalTeacher, LstmRule, StaleVersionError
from l2t_ray.distributed.teacher_actor import StaleAttemptError, TeacherService

SIZE = 3
RANKS = st.integers(0, 2)


def new_teacher() -> LocalTeacher:
    lstm = LSTMTeacher((2, 1), head="hidden", seed=0)
    return LocalTeacher(torch.linspace(-1, 1, SIZE), LstmRule(lstm, SIZE, step_size=0.1, learning_rate=0.01, horizon=2))


def share(attempt: int, rank: int, version: int, kind: str) -> np.ndarray:
    """Its sum over ranks depends, in its last bits, on the order."""
    generator = np.random.default_rng([abs(attempt), rank, abs(version), kind == "learn"])
    return (generator.standard_normal(SIZE) * 10.0 ** generator.integers(-3, 4, SIZE)).astype(np.float32)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@dataclass
class Waiting:
    """A proposal that was sent, with what its sender must be told in the end."""

    attempt: int
    version: int
    task: asyncio.Task = field(repr=False)


class Protocol(RuleBasedStateMachine):
    """Sends messages. In a lookahead run the teacher learns from shares of its own, else from those proposed with."""

    @initialize(num_workers=st.integers(1, 3), is_lookahead=st.booleans())
    def start(self, num_workers, is_lookahead):
        self.loop = asyncio.new_event_loop()
        self.service = TeacherService(new_teacher)
        self.oracle, self.saved = new_teacher(), new_teacher().state_dict()
        self.fresh, self.attempt = self.oracle.state_dict(), 0
        self.waiting: list[Waiting] = []
        self.expected: dict[tuple[int, int], bytes] = {}
        self.is_lookahead = is_lookahead
        self.begin(num_workers, True, 1)

    def send(self, message):
        task = self.loop.create_task(message)
        self.settle()
        return task

    def settle(self):
        for _ in range(8):
            self.loop.run_until_complete(asyncio.sleep(0))

    def refused(self, task, kind=StaleAttemptError):
        assert task.done() and isinstance(task.exception(), kind), task
        return task.exception()

    @rule(num_workers=st.integers(1, 3), is_new=st.booleans(), step=st.integers(1, 3))
    def begin(self, num_workers, is_new, step):
        """A younger attempt, from the beginning or from the last checkpoint, ends the current one."""
        self.attempt, self.num_workers = self.attempt + step, num_workers
        state = None if is_new else self.saved
        self.oracle.begin(self.fresh if state is None else state)
        self.proposed, self.told, self.heard = set(), set(), set()
        self.learned = self.oracle.read().version - (not self.is_lookahead)
        assert self.send(self.service.begin(self.attempt, num_workers, state)).result() is None
        for waiting in self.waiting:
            assert self.refused(waiting.task).is_replaced
        self.waiting = []

    @rule(back=st.integers(0, 2))
    def begin_late(self, back):
        """A group that was replaced, or a message that comes twice."""
        refusal = self.refused(self.send(self.service.begin(self.attempt - back, 1, None)))
        assert refusal.is_replaced

    @rule(ahead=st.sampled_from([-2, -1, 1]), rank=RANKS)
    def speak_in_another_attempt(self, ahead, rank):
        attempt, version = self.attempt + ahead, self.oracle.read().version
        for message in (
            self.service.read(attempt),
            self.service.propose(attempt, rank, version, 0.5, share(attempt, rank, version, "propose")),
            self.service.learn(attempt, rank, version, None),
            self.service.learn(attempt, rank, version, share(attempt, rank, version, "learn")),
            self.service.state(attempt, rank),
        ):
            assert self.refused(self.send(message)).is_replaced == (ahead < 0)

    @precondition(lambda self: self.is_free())
    @rule(rank=RANKS)
    def propose(self, rank):
        """Shares come in any order of ranks, and more than once."""
        rank, version = rank % self.num_workers, self.oracle.read().version
        attempt, gradient = self.attempt, share(self.attempt, rank, version, "propose")
        self.proposed.add(rank)
        is_whole = len(self.proposed) == self.num_workers
        if is_whole:
            answer = self.oracle.propose(version, self.total(version, "propose"), 0.5 * self.num_workers)
            self.expected[attempt, version] = answer.phi.numpy().tobytes()
        task = self.send(self.service.propose(attempt, rank, version, 0.5, gradient))
        self.waiting.append(Waiting(attempt, version, task))
        if is_whole:
            self.proposed = set()
            self.check_answers(self.waiting)
            self.waiting = []

    @precondition(lambda self: (self.attempt, self.oracle.read().version - 1) in self.expected)
    @rule(rank=RANKS)
    def propose_again(self, rank):
        """A share that comes again when all were answered is answered again, and moves nothing."""
        rank, version = rank % self.num_workers, self.oracle.read().version - 1
        gradient = share(self.attempt, rank, version, "propose")
        task = self.send(self.service.propose(self.attempt, rank, version, 0.5, gradient))
        self.check_answers([Waiting(self.attempt, version, task)])

    @rule(rank=RANKS, off=st.sampled_from([-3, -2, 1, 2]))
    def propose_at_other_weights(self, rank, off):
        version = self.oracle.read().version + off
        gradient = share(self.attempt, rank, version, "propose")
        self.refused(self.send(self.service.propose(self.attempt, rank, version, 0.5, gradient)), StaleVersionError)

    @precondition(lambda self: self.owes())
    @rule(rank=RANKS, is_twice=st.booleans())
    def learn(self, rank, is_twice):
        """What came of the latest proposal: a share of each worker, or one word of rank 0's."""
        version = self.learned + 1
        rank = rank % self.num_workers if self.is_lookahead else 0
        gradient = share(self.attempt, rank, version, "learn") if self.is_lookahead else None
        self.told.add(rank)
        if not self.is_lookahead or len(self.told) == self.num_workers:
            self.oracle.learn(version, self.total(version, "learn") if self.is_lookahead else None)
            self.learned, self.told = version, set()
            self.heard.add(version)
        for _ in range(1 + is_twice):
            assert self.send(self.service.learn(self.attempt, rank, version, gradient)).result() is None

    @precondition(lambda self: self.heard)
    @rule(rank=RANKS, is_first=st.booleans())
    def learn_late(self, rank, is_first):
        """Of a version whose outcome is known: ignored."""
        version = (min if is_first else max)(self.heard)
        gradient = share(self.attempt, rank, version, "learn")
        assert self.send(self.service.learn(self.attempt, rank, version, gradient)).result() is None

    @precondition(lambda self: self.is_free() and not self.proposed)
    @rule()
    def save(self):
        state, empty = (self.send(self.service.state(self.attempt, rank)).result() for rank in (0, 1))
        assert same(state, self.oracle.state_dict()) and empty == {}
        self.saved = state

    @precondition(lambda self: self.proposed or self.told)
    @rule()
    def save_while_shares_are_missing(self):
        task = self.send(self.service.state(self.attempt, 0))
        assert not task.done()
        task.cancel()
        self.settle()

    @invariant()
    def whoever_waits_waits_with_reason(self):
        assert not any(waiting.task.done() for waiting in self.waiting)
        heard = {rank for rank in self.proposed | self.told}
        missing = [rank for rank in range(self.num_workers) if rank not in heard] if heard else []
        assert self.send(self.service.absent()).result() == missing

    @invariant()
    def the_teacher_is_where_the_oracle_is(self):
        version, phi, _ = self.send(self.service.read(self.attempt)).result()
        expected = self.oracle.read()
        assert version == expected.version and phi.tobytes() == expected.phi.numpy().tobytes()

    def is_free(self) -> bool:
        """Whether the workers' next proposal is due: the outcome of the one before is told."""
        return not self.owes()

    def owes(self) -> bool:
        """Whether an outcome is due: of the newest weights in a lookahead run, else of the ones proposed from."""
        version = self.oracle.read().version
        return not self.proposed and self.learned + 1 == (version if self.is_lookahead else version - 1)

    def total(self, version: int, kind: str) -> torch.Tensor:
        shares = [torch.from_numpy(share(self.attempt, rank, version, kind)) for rank in range(self.num_workers)]
        total = shares[0].clone()
        for gradient in shares[1:]:
            total += gradient
        return total

    def check_answers(self, answered: list[Waiting]) -> None:
        for waiting in answered:
            version, phi, _ = waiting.task.result()
            assert version == waiting.version + 1
            assert phi.tobytes() == self.expected[waiting.attempt, waiting.version]

    def teardown(self):
        for waiting in self.waiting:
            waiting.task.cancel()
        self.settle()
        self.loop.close()


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
