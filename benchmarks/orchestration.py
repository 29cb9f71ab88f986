"""What Ray costs: rounds a second and start-up beside the plain process, and the way to the teacher and back.

    python benchmarks/orchestration.py                         about six minutes on two free cores
    python benchmarks/orchestration.py --parts teacher         one part; what the file has of the others stays

The student is a narrow ResNet-8 on random images of CIFAR's shape, K = 15. Runs of the plain process stand between
those on Ray, so that what else the machine does falls on both; medians count. Every process has one thread.
"""

import argparse
import asyncio
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.distributed.launch import ray_session
from l2t_ray.distributed.teacher_actor import TeacherService
from l2t_ray.methods.l2t_dln import L2TDLNConfig
from l2t_ray.methods.parts import LossFacts
from l2t_ray.run import Experiment
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.metrics import read_rows

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "orchestration.json"
PARTS = ("start_up", "teacher", "rounds")
WORKERS = (1, 8, 64)
SETTINGS = [
    "student={name: resnet8, widths: narrow, norm: group}",
    "data={name: cifar10, verify: false, download: false, num_validation: 500}",
    "training={num_steps: 15, batch_size: 25, val_batch_size: 100, eval_every: 1000, checkpoint_every: 1000}",
    "controls=[]",
    "tracking.mlflow=false",
]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of each run; the first two are not counted")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_images(root)
        measures: dict[str, Callable[[], Any]] = {
            "start_up": lambda: start_ups(root),
            "teacher": teacher_trips,
            "rounds": lambda: compare(root, options.rounds, console),
        }
        for part in options.parts:
            before = os.getloadavg()
            with console.status(part):
                measured = measures[part]()
            result[part] = {"measured": circumstances(before), "of": measured}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result, console)
    print(json.dumps(headline(result)))


def circumstances(load: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg(),
    }


def write_images(root: Path) -> None:
    """Random CIFAR-10 in the usual layout, small."""
    folder, generator = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = generator.integers(0, 256, (400, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [i % 10 for i in range(400)], "filenames": [f"{i}.png" for i in range(400)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}, protocol=2))


def overrides(root: Path, *more: str) -> list[str]:
    return [*SETTINGS, f"data.root={root}", f"runs={root / 'runs'}", *more]


def start_ups(root: Path) -> dict[str, float]:
    ways = {"plain": "ray.enabled=false", "ray, 1 worker": "ray.num_workers=1", "ray, 2 workers": "ray.num_workers=2"}
    return {way: start_up(root, setting) for way, setting in ways.items()}


def start_up(root: Path, how: str) -> float:
    """Seconds from the command to the beginning of the first round."""
    name = how.replace("=", "-")
    began = time.time()
    command = [sys.executable, str(REPOSITORY / "jobs" / "cifar.py"), "--quiet"]
    subprocess.run([*command, *overrides(root, how, f"name={name}", "training.num_rounds=1")], check=True)
    rows = read_rows(root / "runs" / name / "metrics.parquet")
    return rows[0]["ended_at"] - rows[0]["seconds"] - began


def compare(root: Path, num_rounds: int, console: Console) -> dict[str, dict[str, float]]:
    """Each way of running, between two runs of the plain process."""
    ways = {
        "plain": ["ray.enabled=false", "device=cpu"],
        "ray, 1 worker": ["ray.num_workers=1"],
        "ray, 2 workers": ["ray.num_workers=2"],
    }
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number, way in enumerate(["plain", "ray, 1 worker", "plain", "ray, 1 worker", "plain", "ray, 2 workers"]):
        of_run = rounds(root, number, [*ways[way], f"training.num_rounds={num_rounds}"])
        console.print(f"{way}: {statistics.median(row['period'] for row in of_run):.3f} s a round")
        rows[way] += of_run
    return {way: summary(of_way) for way, of_way in rows.items()}


def rounds(root: Path, number: int, settings: list[str]) -> list[dict[str, Any]]:
    """The rows of a run, each with `period`: the time since the round before it ended, all overhead included."""
    experiment = Experiment.from_yaml(
        REPOSITORY / "configs/digits.yaml", overrides(root, *settings, f"name=run{number}")
    )
    experiment.run(quiet=True)
    rows = read_rows(experiment.directory / "metrics.parquet")
    return [{**row, "period": row["ended_at"] - before["ended_at"]} for before, row in pairwise(rows[1:])]


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians. What is neither data, unroll nor hypergradient is what it costs not to be alone."""
    worked = ("seconds_data", "seconds_unroll", "seconds_hypergradient")
    return {
        "seconds_a_round": statistics.median(row["period"] for row in rows),
        "rounds_a_second": 1 / statistics.median(row["period"] for row in rows),
        "seconds_besides_training": statistics.median(row["period"] - sum(row[key] for key in worked) for row in rows),
        **{key: statistics.median(row[key] for row in rows) for key in ("seconds_collectives", "seconds_teacher")},
        "num_rounds": len(rows),
    }


def teacher_trips() -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds from a worker's proposal to its answer, when all workers propose at once.

    All workers are played by this process, so their calls leave one after the other. `in_process` is the same service
    without Ray: what the teacher itself needs.
    """
    make = partial(build_teacher, L2TDLNConfig(), LossFacts(Classification(), 10, seed=0))
    with ray_session(Experiment.from_yaml(REPOSITORY / "configs/digits.yaml").config):
        return {
            str(n): {"ray": spread(trips_on_ray(make, n)), "in_process": spread(asyncio.run(trips_in_process(make, n)))}
            for n in WORKERS
        }


def trips_on_ray(make: Callable[[], Any], num_workers: int) -> list[float]:
    import ray

    actor = ray.remote(TeacherService).options(num_cpus=0).remote(make)
    ray.get(actor.begin.remote(1, num_workers, None))
    version, phi = ray.get(actor.read.remote(1))
    gradient = 1e-3 * np.ones_like(phi)
    times: list[float] = []
    for _ in range(_num_turns(num_workers)):
        sent = {}
        for rank in range(num_workers):
            began = time.perf_counter()
            sent[actor.propose.remote(1, rank, version, 0.1, gradient)] = began
        waiting = list(sent)
        while waiting:
            (answer,), waiting = ray.wait(waiting)
            next_version, _ = ray.get(answer)
            times.append(time.perf_counter() - sent[answer])
        ray.get(actor.learn.remote(1, 0, version, None))
        version = next_version
    ray.kill(actor)
    return times


async def trips_in_process(make: Callable[[], Any], num_workers: int) -> list[float]:
    service: Any = TeacherService(make)
    await service.begin(1, num_workers, None)
    version, phi = await service.read(1)
    gradient = 1e-3 * np.ones_like(phi)
    times: list[float] = []

    async def ask(rank: int) -> None:
        began = time.perf_counter()
        await service.propose(1, rank, version, 0.1, gradient)
        times.append(time.perf_counter() - began)

    for _ in range(_num_turns(num_workers)):
        await asyncio.gather(*(ask(rank) for rank in range(num_workers)))
        await service.learn(1, 0, version, None)
        version += 1
    return times


def _num_turns(num_workers: int) -> int:
    return max(20, 200 // num_workers)


def spread(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "calls": len(seconds)}


def headline(result: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {}
    if "rounds" in result:
        plain, one, two = result["rounds"]["of"].values()
        line["slowdown_1_worker"] = one["seconds_a_round"] / plain["seconds_a_round"] - 1
        line["speedup_2_workers"] = plain["seconds_a_round"] / two["seconds_a_round"]
    if "start_up" in result:
        line["seconds_to_first_round"] = result["start_up"]["of"]
    if "teacher" in result:
        for key in ("p50_ms", "p99_ms"):
            line[f"teacher_{key}"] = {n: of["ray"][key] for n, of in result["teacher"]["of"].items()}
    return line


def show(result: dict[str, Any], console: Console) -> None:
    if "start_up" in result:
        table = Table("", "seconds to the first round")
        for way, seconds in result["start_up"]["of"].items():
            table.add_row(way, f"{seconds:.1f}")
        console.print(table)
    if "rounds" in result:
        table = Table("", "rounds/s", "ms a round", "ms besides training", "of it: sums", "of it: teacher")
        for way, of_way in result["rounds"]["of"].items():
            keys = ("seconds_a_round", "seconds_besides_training", "seconds_collectives", "seconds_teacher")
            table.add_row(way, f"{of_way['rounds_a_second']:.3f}", *(f"{1e3 * of_way[key]:.1f}" for key in keys))
        console.print(table)
    if "teacher" in result:
        table = Table("workers", "p50 [ms]", "p99 [ms]", "p50 without Ray", "p99 without Ray")
        for num_workers, of in result["teacher"]["of"].items():
            cells = [of[where][key] for where in ("ray", "in_process") for key in ("p50_ms", "p99_ms")]
            table.add_row(num_workers, *(f"{cell:.2f}" for cell in cells))
        console.print(table)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
