"""What tests of several parts use."""

import os
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums of two threads are not those of a Ray worker's one

RELIABILITY = Path(__file__).parents[1] / "docs/reliability.md"
BEGIN, END = "<!-- matrix: written by `make matrix` -->\n", "<!-- end of matrix -->\n"
COLUMNS = ("this process", "2 workers", "3 machines")
STARTS_RAY = ("tests/distributed/", "tests/studies/test_sweep.py")
SHARE_LONG_WORK = ("tests/integration/test_notebook.py", "tests/theory/test_convergence.py")
"""Files whose tests look at one long piece of work, which two processes would do twice."""
OUTCOMES = pytest.StashKey[dict]()
"""By (failure, where): what each of its tests came to."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several processes one runs all tests that start a Ray, from the beginning: they wait more than they work."""
    from xdist.scheduler import LoadScopeScheduling

    class OneProcessForRay(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith(SHARE_LONG_WORK):
                return nodeid.partition("::")[0]
            return "ray" if nodeid.startswith(STARTS_RAY) else nodeid

    return OneProcessForRay(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("failure")
    if mark is not None and (report.when == "call" or report.failed):
        outcomes = item.config.stash.setdefault(OUTCOMES, defaultdict(list))
        outcomes[mark.args].append(mark.kwargs.get("ends", "same end") if report.passed else report.outcome)
    return report


def pytest_sessionfinish(session):
    """Writes what failures came to into the documents, when `make matrix` asks for it."""
    outcomes = session.config.stash.get(OUTCOMES, None)
    if outcomes is None or "L2T_MATRIX" not in os.environ:
        return
    before, rest = RELIABILITY.read_text().split(BEGIN)
    old, after = rest.split(END)
    rows = dict(
        (name.strip(), [cell.strip() for cell in cells])
        for line in old.splitlines()[2:]
        for _, name, *cells, _ in [line.split("|")]
    )
    for (failure, where), ends in outcomes.items():
        row = rows.setdefault(failure, [""] * len(COLUMNS))
        row[COLUMNS.index(where)] = ", ".join(sorted(set(ends)))
    header = ["failure", *COLUMNS]
    lines = [header, ["---"] * len(header), *([name, *cells] for name, cells in rows.items())]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    RELIABILITY.write_text(before + BEGIN + table + END + after)


class TwoThreads:
    """One of two workers, each a thread of this process; a barrier makes their sums collective."""

    size = 2

    def __init__(self, rank, slots, barrier):
        self.rank, self._slots, self._barrier = rank, slots, barrier

    def sum(self, tensor):
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait(timeout=30)
        total = self._slots[0] + self._slots[1]
        self._barrier.wait(timeout=30)
        return total


@pytest.fixture
def run_on_two_workers():
    """`run(work)` gives `[work(group of rank 0), work(group of rank 1)]`. Workers may not share a module."""

    def run(work):
        slots, barrier = [None, None], threading.Barrier(2)

        def guarded(rank):
            try:
                return work(TwoThreads(rank, slots, barrier))
            except BaseException:
                barrier.abort()  # the other one must not wait for a sum that never comes
                raise

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(guarded, range(2)))

    return run


@pytest.fixture
def make_problem():
    from bilevel_problem import Problem

    return Problem
