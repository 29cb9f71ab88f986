"""What learned losses cost on pixels: time and memory of rounds of a PSPNet, and of the loss network alone.

    python benchmarks/pixel_costs.py rounds     small PSPNet, K = 5: a round over plain steps, exact and one step ahead
    python benchmarks/pixel_costs.py rows       loss network on m sampled pixels: memory and time over rows
    python benchmarks/pixel_costs.py full       one step of PSPNet on a ResNet-50, 380x380, 21 classes

Each line is measured in a fresh process on one thread: CPU time of the process, the median of `--repeats` turns after
one that is not timed (`full`: one turn, which is timed), and the growth of the resident set at its peak. Images and
masks are random, students as initialised: costs do not depend on them. What is printed is a table in Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from hypergradient import peak_growth, timed
from torch import Tensor, nn

from l2t_ray.bilevel.engines import EngineName
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.heap import keep_freed_memory
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.soft_metric import SoftMetricLoss
from l2t_ray.core.loss.terms import TermLoss
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee, cross_entropy
from l2t_ray.interfaces import Batch, RoundBatches
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.students.pspnet import PSPNet
from l2t_ray.students.pspnet_resnet import pspnet_resnet
from l2t_ray.tasks.segmentation import Segmentation

HERE = Path(__file__).resolve()
RATE = 0.01


@dataclass(frozen=True)
class Case:
    """One line of a table; `engine` plain: K steps under cross-entropy, without a hypergradient."""

    student: str
    loss: str
    engine: str
    size: int
    pixels: int
    num_classes: int
    num_steps: int
    batch_size: int


class Logits(nn.Module):
    """A student that costs nothing: its weights are the logits of one image."""

    def __init__(self, num_classes: int, size: int):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(1, num_classes, size, size))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


STUDENTS: Mapping[str, Callable[[Case], nn.Module]] = {
    "PSPNet 0.1 M": lambda case: PSPNet(num_classes=case.num_classes),
    "PSPNet ResNet-50": lambda case: pspnet_resnet(
        50, num_classes=case.num_classes, in_channels=3, image_size=case.size
    ),
    "logits alone": lambda case: Logits(case.num_classes, case.size),
}
LOSSES: Mapping[str, Callable[[Segmentation], LossFamily]] = {
    "pairs": lambda task: PairLoss(DynamicLossNetwork(init="cross_entropy", pairs="softmax", activation="silu")),
    "terms": lambda task: TermLoss.for_task(task),
    "soft_metric": lambda task: SoftMetricLoss.for_classes(task.class_names),
}
ROUNDS = [
    Case("PSPNet 0.1 M", loss, engine, 64, 256, 11, 5, 8)
    for loss, engine in (
        ("cross-entropy", "plain"),
        *((loss, engine) for loss in LOSSES for engine in ("store", "recompute", "one_step")),
    )
]
ROWS = [
    Case("logits alone", loss, engine, 380, pixels, 21, 1, 1)
    for pixels in (1024, 4096, 16384)
    for loss, engine in (("cross-entropy", "plain"), ("pairs", "store"), ("terms", "store"))
]
FULL = [
    Case("PSPNet ResNet-50", loss, engine, 380, 4096, 21, 1, 1)
    for loss, engine in (("cross-entropy", "plain"), ("pairs", "store"))
]
COLUMNS = ("student", "loss", "engine", "pixels", "K", "batch", "CPU s", "x plain", "peak MiB")
TABLES = {"rounds": ROUNDS, "rows": ROWS, "full": FULL}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=TABLES, nargs="?", default="rounds")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each line (default 3)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(Case(**json.loads(options.measure)), options.repeats)))
        return
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    plain = 1.0
    for case in TABLES[options.table]:
        repeats = 0 if options.table == "full" else options.repeats
        found = in_fresh_process(case, repeats)
        plain = found["seconds"] if case.engine == "plain" else plain
        what = (case.student, case.loss, case.engine, f"{case.pixels:,}", case.num_steps, case.batch_size)
        figures = (f"{found['seconds']:.3g}", f"{found['seconds'] / plain:.2f}", f"{found['peak_mib']:,.0f}")
        print(f"| {' | '.join(map(str, what + figures))} |", flush=True)


def in_fresh_process(case: Case, repeats: int) -> dict[str, float]:
    command = [sys.executable, str(HERE), "--repeats", str(repeats), "--measure", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(case: Case, repeats: int) -> dict[str, float]:
    """CPU seconds of a round, and the growth of the resident set in the first one."""
    torch.set_num_threads(1)
    keep_freed_memory()
    run, first = round_of(case), []
    peak = peak_growth(lambda: first.append(timed(run)[0]))
    return {"seconds": statistics.median([timed(run)[0] for _ in range(repeats)] or first), "peak_mib": peak}


def round_of(case: Case) -> Callable[[], Any]:
    """Takes the steps, and with an engine the hypergradient behind them."""
    torch.manual_seed(0)
    task = Segmentation([f"class {number}" for number in range(case.num_classes)])
    schedule = StudentSchedule(lambda step: RATE, case.num_steps, Sgd(0.9, 5e-4))
    trainee = Trainee(FlatModule(STUDENTS[case.student](case)), task, schedule, SingleProcess())
    batches = RoundBatches([minibatch(case) for _ in range(case.num_steps)], minibatch(case, is_whole=True))
    start, rates = trainee.initial(), [RATE] * case.num_steps
    if case.engine == "plain":

        def loss(theta: Tensor, phi: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
            rows = trainee.rows(theta, buffers, batch)
            return rows.total(cross_entropy(rows.logits, rows.labels)), rows.logits

        return lambda: trainee.train(loss, start, torch.zeros(0), batches.train, rates)
    objective, engine = LearnedObjective(trainee, LOSSES[case.loss](task)), cast(EngineName, case.engine)
    problem, phi = objective.first_problem(batches), objective.initial_phi()
    return lambda: hypergradient(problem, start, phi, batches.train, batches.val, rates=rates, engine=engine)


def minibatch(case: Case, *, is_whole: bool = False) -> Batch:
    """Random crops with `case.pixels` chosen pixels each; whole: the error is of all of them."""
    size, count = case.size, case.batch_size
    mask = torch.randint(case.num_classes, (count, size, size))
    chosen = torch.stack([torch.randperm(size**2)[: case.pixels] for _ in range(count)])
    rows = count * (size**2 if is_whole else case.pixels)
    targets = mask if is_whole else {"mask": mask, "chosen": chosen}
    return Batch(torch.randn(count, 3, size, size), targets, torch.full((count,), 1 / rows), torch.arange(count))


if __name__ == "__main__":
    main()
