"""Damage and kills at random, seeded: whatever happens to a run, it ends as if nothing had, or says in one sentence why
not. `python -m pytest tests/run/test_fuzz.py -m slow -s` prints the counts."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from l2t_ray.run import Experiment, exit_codes

LONGEST_S = 120
RIGHT, REFUSED, TRACEBACK, WRONG, HANG, LOST = VERDICTS = ("right", "refused", "traceback", "wrong", "hang", "lost")
ENDS = (RIGHT, REFUSED)


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal, None for one that had to be stopped; what it said."""

    code: int | None
    said: str


def in_a_process(action: Callable[[], object], *, kill_after: float | None = None) -> Ended:
    """Runs an action in a fork of this process, so that imports are paid for once."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                warnings.simplefilter("default")  # as in a program: here they would be errors
                sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
                try:
                    with exit_codes():
                        action()
                    code = 0
                except SystemExit as exit:
                    code = exit.code if isinstance(exit.code, int) else 1
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
            finally:
                os._exit(code)
        give_up = time.monotonic() + (LONGEST_S if kill_after is None else kill_after)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > give_up:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.005)
        output.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        is_hang = code == -signal.SIGKILL and kill_after is None
        return Ended(None if is_hang else code, output.read().decode(errors="replace"))


def verdict(ended: Ended, is_same: Callable[[], bool], *, may_be_refused: bool) -> str:
    if ended.code is None:
        return HANG
    if "Traceback (most recent call last)" in ended.said:
        return TRACEBACK
    if ended.code == 0:
        return RIGHT if is_same() else WRONG
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if ended.code != 2 or len(errors) != 1:
        return TRACEBACK
    return REFUSED if may_be_refused else LOST


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def emptied(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def removed(path: Path, _: random.Random) -> None:
    path.unlink()


def scrambled(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.randrange(1, 5000)))


def lengthened(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 100)))


def a_directory(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (flipped, flipped, cut, cut, emptied, removed, scrambled, lengthened, a_directory)


def damaged_case(seed: int, whole: Path, folder: Path, end_of) -> tuple[str, str]:
    """Some file of an interrupted run is damaged, and the run resumed."""
    draw = random.Random(f"damage {seed}")
    copy = folder / "x"
    subprocess.run(["cp", "-a", whole, copy], check=True)  # with the hard links between its checkpoints
    kept = draw.randrange(1, 5)
    for path in sorted((copy / "checkpoints").iterdir())[kept:]:
        shutil.rmtree(path)
    for name in ("summary.json", "metrics.parquet", "loss.safetensors", "loss.md"):
        (copy / name).unlink()
    path = draw.choice([path for path in sorted(copy.rglob("*")) if path.is_file()])
    damage = draw.choice(DAMAGES)
    damage(path, draw)
    ended = in_a_process(lambda: Experiment.resume(copy).run(quiet=True, figures=False))
    may_be_refused = (path.name == "config.yaml" and path.parent == copy) or kept == 1
    found = verdict(ended, lambda: end_of(copy) == end_of(whole), may_be_refused=may_be_refused)
    return found, f"seed {seed}: {damage.__name__} {path.relative_to(copy)} of {kept} checkpoints\n{ended}"


def killed_case(seed: int, whole: Path, folder: Path, end_of, tiny) -> tuple[str, str]:
    """The process is killed at random moments, and the same command given again, or `--resume`."""
    draw = random.Random(f"kill {seed}")
    # From far behind the first round, so that the closing part has its share: a run takes about a second.
    moments = [draw.uniform(0, 1.5) for _ in range(draw.randrange(1, 4))]
    every = f"training.checkpoint_every={draw.choice([1, 2, 3])}"

    def run(resumes: bool):
        is_there = (folder / "x/config.yaml").exists()
        again = Experiment.resume(folder / "x") if resumes and is_there else tiny(folder, every)
        again.run(quiet=True, figures=False)

    ended = Ended(0, "")
    for moment in (*moments, None):
        if (folder / "x/summary.json").exists():  # killed on its way out
            ended = Ended(0, "")
            break
        resumes = draw.random() < 0.5
        ended = in_a_process(lambda resumes=resumes: run(resumes), kill_after=moment)
        if ended.code not in (0, -signal.SIGKILL):
            break
    found = verdict(ended, lambda: end_of(folder / "x") == end_of(whole), may_be_refused=False)
    return found, f"seed {seed}: killed after {moments}\n{ended}"


def counted(title: str, number: int, case: Callable[[int], tuple[str, str]]) -> Counter[str]:
    """Tries them all and prints a line of the table; fails with the first case that did not end well."""
    counts: Counter[str] = Counter()
    bad = []
    for seed in range(number):
        found, what = case(seed)
        counts[found] += 1
        if found not in ENDS:
            bad.append(f"{found}: {what}")
    print(f"\n| {title} | {number} | " + " | ".join(str(counts[name]) for name in VERDICTS) + " |")
    assert not bad, "\n".join([f"{len(bad)} of {number}", *bad[:3]])
    return counts


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_a_damaged_run_ends_right_or_says_why_not(number, whole, tmp_path, end_of):
    def case(seed):
        (tmp_path / str(seed)).mkdir()
        return damaged_case(seed, whole, tmp_path / str(seed), end_of)

    assert counted("files of a run cut, flipped, removed", number, case)[RIGHT] > number / 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_a_run_that_is_killed_anywhere_comes_to_the_same_end(number, whole, tmp_path, end_of, tiny):
    def case(seed):
        return killed_case(seed, whole, tmp_path / str(seed), end_of, tiny)

    assert counted("the process killed at random moments", number, case)[RIGHT] == number
