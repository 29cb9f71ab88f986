"""Kills parts of a run again and again, and shows that it ends as if nobody had.

A run on two Ray workers is trained while, one after another, its teacher, a worker, both, or its driver gets SIGKILL.
When the time is up the run is stopped at its last checkpoint; an undisturbed run of as many rounds is then held against
it, to the last bit of student, loss network, teacher and metrics.

    python benchmarks/soak.py --seconds 60 --seed 1

The last line of standard output is one JSON object: kills, rounds, rounds_redone, identical, and what it cost. What is
killed in which order, and how long each kill waits after the recovery from the one before, follow from the seed.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[1]
EVERY = 5
"""Rounds between checkpoints."""
OVERRIDES = [
    *("controls=[]", "tracking.mlflow=false", "ray.max_failures=1000000"),
    *("student.name=lenet", "training.batch_size=32", "training.val_batch_size=64", "training.num_steps=10"),
    *("training.learning_rate=0.02", "training.decay=constant"),
    *(f"training.checkpoint_every={EVERY}", f"training.eval_every={EVERY}"),
]
WEIGHTS = {"teacher": 6, "worker": 3, "both": 1, "driver": 1}
"""How often each kind is drawn."""
PAUSE_S = (0.5, 3.0)
"""Training between a recovery and the next kill."""
RELAY_S = 1.5
"""Rows that were finished before a kill may still arrive this long after it."""
START_S, RECOVERY_S = 180.0, 180.0
"""Longest waits; a run that takes longer counts as lost."""


@dataclass
class Kill:
    kind: str
    at: float
    recovered_s: float | None = None


@dataclass
class Progress:
    """What the file of finished rounds has shown so far."""

    path: Path
    read: int = 0
    last: int = -1
    highest: int = -1
    rounds_redone: int = 0
    fell_back: bool = False
    arrived: float = field(default=0.0)

    def update(self) -> bool:
        """Reads what is new. Whether anything was."""
        if not self.path.exists():
            return False
        with self.path.open() as file:
            file.seek(self.read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            index = int(line)
            self.rounds_redone += index <= self.highest
            self.fell_back |= index <= self.last
            self.last, self.highest, self.arrived = index, max(self.highest, index), time.monotonic()
        return bool(whole)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long parts are killed (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the result to this JSON file")
    parser.add_argument("--keep", type=Path, help="leave both runs and their logs in this new directory")
    parser.add_argument("--drive", nargs=3, metavar=("DIRECTORY", "ROUNDS", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.drive:
        directory, rounds, seed = arguments.drive
        drive(Path(directory), int(rounds), int(seed))
        return
    with folder_for_runs(arguments.keep) as folder:
        result = soak(arguments.seconds, arguments.seed, folder)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "each"}))


def soak(seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """The whole procedure; what it measured."""
    disturbed, undisturbed = folder / "disturbed", folder / "undisturbed"
    say("starting Ray")
    with ray_of_our_own() as (environment, raylet):
        kills, progress, begun = kill_until(seconds, random.Random(seed), disturbed, seed, environment, raylet)
        rounds = rounds_in(disturbed)
        say(f"{len(kills)} kills, {rounds} rounds; now the same rounds undisturbed")
        problem = "" if rounds else "no checkpoint was reached"
        if rounds:
            driver = start_driver(undisturbed, rounds, seed, environment)
            try:
                driver.wait(timeout=START_S + 2 * seconds)
            except subprocess.TimeoutExpired:
                problem = "the undisturbed run took too long"
            finally:
                end(driver)
        if not problem:
            problem = difference(disturbed, undisturbed)
    lost = [kill for kill in kills if kill.recovered_s is None]
    if lost:
        problem = f"no recovery within {RECOVERY_S:g} s from: {lost[0].kind}"
    if problem:
        say(problem)
    waits = [kill.recovered_s for kill in kills if kill.recovered_s is not None]
    table(kills)
    return {
        "kills": len(kills) - len(lost),
        "rounds": rounds,
        "rounds_redone": progress.rounds_redone,
        "identical": not problem,
        "recovery_p50_s": round(statistics.median(waits), 2) if waits else None,
        "recovery_max_s": round(max(waits), 2) if waits else None,
        "time_lost_s": round(sum(waits), 1),
        "seconds": round(begun, 1),
        "seed": seed,
        "each": [{"kind": kill.kind, "at_s": round(kill.at, 1), "recovered_s": kill.recovered_s} for kill in kills],
    }


def kill_until(
    seconds: float, draw: random.Random, directory: Path, seed: int, environment: Mapping[str, str], raylet: int
) -> tuple[list[Kill], Progress, float]:
    """Trains and kills for that long, then stops the run. The kills, the progress, and the seconds it took."""
    progress, kills = Progress(Path(f"{directory}.rounds")), []
    driver = start_driver(directory, 10**6, seed, environment)
    try:
        if not wait_until(lambda: progress.update() and progress.last >= EVERY, START_S):
            raise SystemExit(f"no training within {START_S:g} s")
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            pause = draw.uniform(*PAUSE_S)
            kind = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            time.sleep(pause)
            progress.update()
            progress.fell_back = False
            found = victims(kind, driver, raylet, draw)
            assert found, f"there is no process to kill for: {kind}"
            kill, struck = Kill(kind, time.monotonic() - begun), time.monotonic()
            kills.append(kill)
            for victim in found:
                victim.send_signal(signal.SIGKILL)
            if kind == "driver":
                end(driver)
                driver = start_driver(directory, 10**6, seed, environment)
            if not wait_until(lambda: recovered(progress, struck), RECOVERY_S):  # noqa: B023 - called at once
                break
            kill.recovered_s = round(time.monotonic() - struck, 2)
            say(f"{kill.at:6.1f} s  {kind:8}{kill.recovered_s:6.1f} s  round {progress.highest}")
        return kills, progress, time.monotonic() - begun
    finally:
        end(driver)


def recovered(progress: Progress, struck: float) -> bool:
    """Whether a round was finished after the blow: one that was finished before, or one that comes late enough."""
    return progress.update() and (progress.fell_back or progress.arrived > struck + RELAY_S)


def victims(kind: str, driver: subprocess.Popen, raylet: int, draw: random.Random) -> list[psutil.Process]:
    if kind == "driver":
        return [psutil.Process(driver.pid)]
    actors = psutil.Process(raylet).children(recursive=True)
    teachers = [process for process in actors if title(process).startswith("ray::TeacherService")]
    workers = sorted((p for p in actors if title(p).startswith("ray::RayTrainWorker")), key=lambda p: p.pid)
    chosen = draw.random()  # drawn whether needed or not, so that the next draws do not depend on it
    found = teachers if kind in ("teacher", "both") else []
    if kind in ("worker", "both") and workers:
        found = [*found, workers[int(chosen * len(workers))]]
    return found


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# --- The run --------------------------------------------------------------------------------------------------------


def drive(directory: Path, rounds: int, seed: int) -> None:
    """What the driver's process does: trains in `directory` from its newest checkpoint, a line a finished round."""
    from l2t_ray.distributed.launch import launch

    experiment = experiment_in(directory, rounds, seed)
    with Path(f"{directory}.rounds").open("a", buffering=1) as file:
        launch(experiment.config, directory, on_rows=lambda rows: file.writelines(f"{row['round']}\n" for row in rows))


def experiment_in(directory: Path, rounds: int, seed: int) -> Any:
    from l2t_ray.run import Experiment

    here = [f"name={directory.name}", f"runs={directory.parent}", f"training.num_rounds={rounds}", f"seed={seed}"]
    return Experiment.from_yaml(REPOSITORY / "configs/digits.yaml", [*OVERRIDES, *here])


def start_driver(directory: Path, rounds: int, seed: int, environment: Mapping[str, str]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--drive", str(directory), str(rounds), str(seed)]
    with Path(f"{directory}.log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def end(driver: subprocess.Popen) -> None:
    if driver.poll() is None:
        driver.kill()
    driver.wait()


@contextmanager
def folder_for_runs(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="l2t-soak-") as name:
        yield Path(name)


@contextmanager
def ray_of_our_own() -> Iterator[tuple[dict[str, str], int]]:
    """A Ray on this machine: the environment that joins it, and the process id of its raylet."""
    import ray

    from l2t_ray.distributed.launch import ENVIRONMENT

    os.environ["RAY_AUTH_MODE"] = "disabled"
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("RAY_ADDRESS", None)
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        yield {**os.environ, "RAY_ADDRESS": context.address_info["gcs_address"], "PYTHONPATH": path}, raylet.pid
    finally:
        ray.shutdown()


# --- Afterwards -----------------------------------------------------------------------------------------------------


def rounds_in(directory: Path) -> int:
    from l2t_ray.training.checkpoint import CheckpointStore

    cut = CheckpointStore(directory / "checkpoints").latest()
    return cut.round if cut else 0


def difference(disturbed: Path, undisturbed: Path) -> str:
    """What differs between the last checkpoints; nothing if they are the same to the last bit."""
    from l2t_ray.training.checkpoint import CheckpointStore

    ours, theirs = (CheckpointStore(path / "checkpoints").latest() for path in (disturbed, undisturbed))
    if ours is None or theirs is None:
        return "there is no checkpoint to compare"
    for part in ("arm", "round", "state", "teacher", "rows"):
        if not is_same(getattr(ours, part), getattr(theirs, part)):
            return f"{part} differs from the undisturbed run"
    return ""


def is_same(a: Any, b: Any) -> bool:
    """Equal to the last bit, timings apart."""
    from l2t_ray.tracking.metrics import TIMES

    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a.keys() - set(TIMES))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool((a == b).all()) if hasattr(a, "all") else a == b


def table(kills: Sequence[Kill]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = Table("kind", "kills", "seconds to recover, p50", "max")
    for kind in WEIGHTS:
        waits = [kill.recovered_s for kill in kills if kill.kind == kind and kill.recovered_s is not None]
        if waits:
            rows.add_row(kind, str(len(waits)), f"{statistics.median(waits):.1f}", f"{max(waits):.1f}")
    Console(stderr=True).print(rows)


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if is_so():
            return True
        time.sleep(0.05)
    return False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
