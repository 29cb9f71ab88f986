"""The teacher's service alone, under asyncio and without Ray."""

import asyncio
import itertools

import numpy as np
import pytest
import torch

from l2t_ray.core.lstm_teacher import LSTMTeacher
from l2t_ray.core.teacher import AdamRule, LocalTeacher, LstmRule, StaleVersionError
from l2t_ray.distributed.teacher_actor import StaleAttemptError, TeacherService
from l2t_ray.interfaces import DivergenceError

SIZE = 7


def lstm_teacher(horizon=2):
    phi = torch.linspace(-1, 1, SIZE)
    lstm = LSTMTeacher((3, 1), head="hidden", seed=0)
    return LocalTeacher(phi, LstmRule(lstm, SIZE, step_size=0.1, learning_rate=0.01, horizon=horizon))


def adam_teacher():
    return LocalTeacher(torch.linspace(-1, 1, SIZE), AdamRule(SIZE))


def share(rank, index, kind=0):
    """A hypergradient share whose sum depends, in its last bits, on the order of summing."""
    generator = np.random.default_rng([rank, index, kind])
    return (generator.standard_normal(SIZE) * 10.0 ** generator.integers(-3, 4, SIZE)).astype(np.float32)


def whole(num_workers, index, kind=0):
    return torch.from_numpy(np.sum([share(r, index, kind) for r in range(num_workers)], axis=0, dtype=np.float32))


async def begun(make_teacher=lstm_teacher, num_workers=2, attempt=1, state=None):
    service = TeacherService(make_teacher)
    await service.begin(attempt, num_workers, state)
    return service


async def proposals(service, index, ranks, attempt=1):
    """Sends a share from each of `ranks`, each before the next is sent, and gathers the answers."""
    tasks = []
    for rank in ranks:
        tasks.append(asyncio.create_task(service.propose(attempt, rank, index, 0.5, share(rank, index))))
        await settle()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def same(a, b):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_any_order_of_arrival_gives_the_same_weights_bit_for_bit():
    async def after(order):
        answers = await proposals(await begun(adam_teacher, num_workers=4), 0, order)
        assert all(version == 1 for version, *_ in answers)
        assert len({phi.tobytes() for _, phi, _ in answers}) == 1
        return answers[0][1].tobytes()

    async def main():
        return {await after(order) for order in itertools.permutations(range(4))}

    # Adam's first step keeps only signs: take the summed gradient itself as well.
    assert len(asyncio.run(main())) == 1

    async def summed(order):
        service = await begun(adam_teacher, num_workers=4)
        await proposals(service, 0, order)
        return (await service.state(1, 0))["last_gradient"]

    sums = [asyncio.run(summed(order)) for order in itertools.permutations(range(4))]
    assert all(torch.equal(total, sums[0]) for total in sums)
    shares = [share(rank, 0) for rank in range(4)]
    assert (sum(shares[::-1]) != sum(shares)).any()  # the order would matter


def test_a_share_that_comes_twice_counts_once():
    async def main():
        service = await begun()
        await proposals(service, 0, [0, 0, 1])
        again = await service.propose(1, 1, 0, 0.5, share(1, 0))
        for rank in (0, 1, 1):
            await service.learn(1, rank, 1, share(rank, 0, kind=1))
        return again, await asyncio.wait_for(service.state(1, 0), 1)

    (version, phi, _), state = asyncio.run(main())
    local = lstm_teacher()
    local.propose(0, whole(2, 0), 1.0)
    local.learn(1, whole(2, 0, kind=1))
    assert version == 1
    np.testing.assert_array_equal(phi, local.read().phi.numpy())
    assert same(state, local.state_dict())


def test_an_attempt_that_is_over_is_refused():
    async def main():
        service = await begun()
        await service.begin(2, 2, None)
        for call in (
            service.read(1),
            service.propose(1, 0, 0, 0.5, share(0, 0)),
            service.learn(1, 0, 0, None),
            service.state(1, 0),
        ):
            with pytest.raises(StaleAttemptError):
                await call
        answers = await proposals(service, 0, [0, 1], attempt=2)
        assert [version for version, *_ in answers] == [1, 1]

    asyncio.run(main())


def test_an_attempt_that_ends_while_waiting_is_refused_and_leaves_nothing():
    async def main():
        service = await begun()
        waiting = asyncio.create_task(service.propose(1, 0, 0, 0.5, share(0, 0)))
        await settle()
        await service.learn(1, 0, 1, share(0, 0))
        asking = asyncio.create_task(service.state(1, 0))
        await settle()
        assert not waiting.done() and not asking.done()
        await service.begin(2, 1, None)
        for task in (waiting, asking):
            with pytest.raises(StaleAttemptError):
                await asyncio.wait_for(task, 1)
        _, phi, _ = await service.propose(2, 0, 0, 0.5, share(0, 0))
        return phi

    local = lstm_teacher()
    np.testing.assert_array_equal(asyncio.run(main()), local.propose(0, whole(1, 0), 0.5).phi.numpy())


@pytest.mark.parametrize("version", [0, 2, 5])
def test_a_share_taken_at_other_weights_is_refused(version):
    async def main():
        service = await begun(num_workers=1)
        await service.propose(1, 0, 0, 0.5, share(0, 0))
        await service.learn(1, 0, 1, share(0, 0))
        if version == 0:  # answered from memory only until the next proposal
            await service.propose(1, 0, 1, 0.5, share(0, 1))
        with pytest.raises(StaleVersionError, match="version"):
            await service.propose(1, 0, version, 0.5, share(0, 0))

    asyncio.run(main())


@pytest.mark.parametrize(("error", "bad"), [(float("nan"), False), (0.5, True)])
def test_divergence_is_told_to_every_worker(error, bad):
    async def main():
        service = await begun(num_workers=3)
        gradient = np.full(SIZE, np.inf, dtype=np.float32) if bad else share(2, 0)
        tasks = [asyncio.create_task(service.propose(1, r, 0, 0.5, share(r, 0))) for r in range(2)]
        await settle()
        tasks.append(asyncio.create_task(service.propose(1, 2, 0, error, gradient)))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)

    assert [type(answer) for answer in asyncio.run(main())] == [DivergenceError] * 3


def test_divergence_in_learning_is_told_to_every_worker_at_its_next_call():
    async def main():
        service = await begun(num_workers=2)
        await proposals(service, 0, [0, 1])
        await service.learn(1, 0, 1, share(0, 0))
        await service.learn(1, 1, 1, np.full(SIZE, np.nan, dtype=np.float32))
        answers = await proposals(service, 1, [0, 1])
        states = await asyncio.gather(service.state(1, 0), service.state(1, 1), return_exceptions=True)
        await service.begin(2, 1, None)  # another attempt begins with a clean slate
        await service.propose(2, 0, 0, 0.5, share(0, 0))
        return answers + states

    assert [type(answer) for answer in asyncio.run(main())] == [DivergenceError] * 4


def test_state_waits_for_shares_that_are_still_on_their_way():
    async def main():
        service = await begun()
        await proposals(service, 0, [0, 1])
        await service.learn(1, 0, 1, share(0, 0, kind=1))
        asking = [asyncio.create_task(service.state(1, rank)) for rank in range(2)]
        await settle()
        assert not any(task.done() for task in asking)
        await service.learn(1, 1, 1, share(1, 0, kind=1))
        return await asyncio.wait_for(asyncio.gather(*asking), 1)

    state, empty = asyncio.run(main())
    assert state["learned"] == 1 and empty == {}


@pytest.mark.parametrize("make_teacher", [lstm_teacher, adam_teacher])
def test_begin_without_a_state_starts_over(make_teacher):
    async def main():
        service = await begun(make_teacher)
        fresh = await service.state(1, 0)
        for index in range(5):
            await proposals(service, index, [0, 1])
            await service.learn(1, 0, index, None)
        assert not same(await service.state(1, 0), fresh)
        await service.begin(2, 2, None)
        return fresh, await service.state(2, 0)

    fresh, again = asyncio.run(main())
    assert same(fresh, again) and same(fresh, make_teacher().state_dict())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("schedule", ["pipelined", "lookahead"])
@pytest.mark.parametrize("stop", [3, 4])
def test_equals_the_local_teacher_bit_for_bit_and_across_a_restart(schedule, order, stop):
    """Seven rounds with windows of two: both stops are in the middle of something."""

    async def rounds(service, attempt, indices):
        for index in indices:
            await proposals(service, index, order, attempt)
            if schedule == "pipelined":
                await service.learn(attempt, 0, index, None)
            else:
                for rank in order:
                    await service.learn(attempt, rank, index + 1, share(rank, index, kind=1))

    async def main():
        service = await begun(num_workers=3)
        await rounds(service, 1, range(stop))
        saved = await service.state(1, 0)
        await rounds(service, 1, range(stop, 6))  # went on, and is thrown back
        await service.begin(2, 3, saved)
        await rounds(service, 2, range(stop, 7))
        return await service.state(2, 0)

    local = lstm_teacher()
    for index in range(7):
        local.propose(index, whole(3, index), 1.5)
        if schedule == "pipelined":
            local.learn(index)
        else:
            local.learn(index + 1, whole(3, index, kind=1))
    assert same(asyncio.run(main()), local.state_dict())
