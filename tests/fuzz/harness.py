"""Tries many inputs and says how each one ended.

`in_child` runs a piece of work in a process of its own, forked from one that has imported all that takes seconds; what
it writes, how it ends and how long it takes can be judged from outside, whatever happens to it. `in_place` judges a
function that reads something, in this process, which is hundreds of times as fast. Both give a `Verdict`.

A fuzzer of another kind needs a function that makes cases from a seed, and for `in_child` one that runs a case: at the
top level of a module, so that the other process finds it.
"""

import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

PRELOADED = ("warm",)
"""Modules that the parent of all children imports once."""
MEMORY_GB = 6


class Verdict(StrEnum):
    RIGHT = "right"
    REFUSED = "refused"
    DIVERGED = "diverged"
    TRACEBACK = "traceback"
    WRONG = "wrong"
    HANG = "hang"
    SIGNAL = "signal"


GOOD = (Verdict.RIGHT, Verdict.REFUSED, Verdict.DIVERGED)
BAD = (Verdict.TRACEBACK, Verdict.WRONG, Verdict.HANG, Verdict.SIGNAL)


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code (negative: the signal that killed it; None: it was still running)."""

    code: int | None
    out: str
    err: str


def in_child(
    work: Callable[..., None], arguments: Sequence[Any], directory: Path, *, timeout: float | int = 60
) -> Ending:
    """Runs `work(*arguments)` in a process of its own, with `directory` as its working directory."""
    out, err = directory / ".out", directory / ".err"
    process = _forkserver().Process(target=_child, args=(work, arguments, directory, out, err), daemon=True)
    process.start()
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    return Ending(code, *texts)


def _forkserver() -> Any:
    """A process that has imported everything and does nothing else, so that it can be forked at any time."""
    here, repository = Path(__file__).parent, Path(__file__).parents[2]
    paths = [str(here), str(repository)]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*(path for path in paths if path not in known), *known])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _child(work: Callable[..., None], arguments: Sequence[Any], directory: Path, out: Path, err: Path) -> None:
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(directory)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(*arguments)


def judged(ending: Ending, is_right: Callable[[], bool], *, may_show_usage: bool = False) -> Verdict:
    """What an ending comes to.

    Args:
        is_right: looks at what was left behind by a process that ended with exit code 0.
        may_show_usage: whether a refusal may have the usage of a command line above its sentence.
    """
    lines = [line for line in ending.err.splitlines() if line.strip()]
    if ending.code is None:
        return Verdict.HANG
    if "Traceback (most recent call last)" in ending.err + ending.out or ending.code == 1:
        return Verdict.TRACEBACK
    if ending.code < 0:
        return Verdict.SIGNAL
    if ending.code == 0:
        return Verdict.RIGHT if is_right() else Verdict.WRONG
    if may_show_usage and lines and lines[0].startswith("usage: "):
        lines = lines[-1:]
    if len(lines) != 1:
        return Verdict.WRONG
    return {2: Verdict.REFUSED, 3: Verdict.DIVERGED}.get(ending.code, Verdict.WRONG)


def in_place(
    read: Callable[[], Any],
    is_right: Callable[[Any], bool],
    *,
    refusals: tuple[type[Exception], ...],
    diverges: tuple[type[Exception], ...] = (),
    timeout: float | int = 10,
) -> tuple[Verdict, str]:
    """Calls `read()` here: right where `is_right` says so of what it gives, refused where it raises one sentence, and
    diverged where it says that.

    Returns:
        The verdict, and what there is to see of it.
    """
    try:
        with _at_most(timeout):
            result = read()
    except refusals as error:
        text = str(error)
        return (Verdict.REFUSED if text and len(text.splitlines()) == 1 else Verdict.WRONG), text
    except diverges as error:
        return Verdict.DIVERGED, str(error)
    except TimeoutError:
        return Verdict.HANG, f"more than {timeout} s"
    except Exception:
        return Verdict.TRACEBACK, traceback.format_exc()
    return (Verdict.RIGHT, "") if is_right(result) else (Verdict.WRONG, repr(result)[:2000])


@contextmanager
def _at_most(seconds: float | int):
    def over(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Tally:
    """The verdicts of one kind of input, and what there is to see of the bad ones."""

    kind: str
    counts: Counter = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, case: object, verdict: Verdict, seen: str) -> None:
        self.counts[verdict] += 1
        if verdict in BAD:
            self.bad.append(f"{verdict}: {case}\n{seen[-3000:]}")

    def check(self, *, at_least: int) -> None:
        """Fails where anything ended badly, or where too few were right for the cases to mean much."""
        print(f"{self.kind}: {dict(self.counts)}", file=sys.stderr)
        assert not self.bad, f"{len(self.bad)} of {self.counts.total()}\n" + "\n\n".join(self.bad)
        assert self.counts[Verdict.REFUSED] >= 1 and self.counts.total() >= at_least


def table(tallies: Iterable[Tally]) -> str:
    """All kinds as a table of Markdown."""
    columns = [*GOOD, *BAD]
    rows = [["input", "tried", *columns], ["---"] * (len(columns) + 2)]
    for tally in tallies:
        rows.append([tally.kind, f"{tally.counts.total():,}", *(f"{tally.counts[column]:,}" for column in columns)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
