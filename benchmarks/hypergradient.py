"""Time, memory and error of one exact hypergradient and of one whole round, against the field.

    python benchmarks/hypergradient.py --quick      narrow ResNet-8, K = 15: three to five minutes on two cores
    python benchmarks/hypergradient.py              all sizes, K = 5, 15, 50: hours
    python benchmarks/hypergradient.py --scaling    how time and memory grow with K, batch, width and classes

Time is CPU time of this process on one thread; contenders take turns, and the median is taken of each one's turns.
Memory is the growth of the resident set above what the process held with everything built and one small student step
taken, at its peak, in a fresh process for each figure. Errors are relative to plain autograd in float64.
"""

import argparse
import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from contenders import APPROXIMATE, HYPERGRADIENTS, LIBRARIES, PLAIN, Case, Setting, is_installed, ours, plain, released
from rich.console import Console
from rich.table import Table

from l2t_ray.bilevel.heap import keep_freed_memory

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
SIZES = ((8, "narrow"), (8, "wide"), (32, "narrow"))
ENGINES = ("store", "recompute", "forward_over_reverse")
OURS = (*ENGINES, *APPROXIMATE)
REFERENCE = ours("recompute")  # tests/core holds it against plain autograd, to 1e-10; autograd's memory grows with K
QUICK_SECONDS = 180
"""Wall time after which `--quick` takes no further turns."""
MEMORY_PROCESSES = 2
QUICK = ("plain", "store", "recompute", "autograd", "released", *LIBRARIES)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size only; ends with one line of JSON")
    parser.add_argument("--scaling", action="store_true", help="curves over K, batch, width and classes")
    parser.add_argument("--repeats", type=int, help="turns of each contender (default 3)")
    parser.add_argument("--sizes", nargs="*", help="of the full run, such as 8-narrow 32-narrow")
    parser.add_argument("--steps", nargs="*", type=int, default=[5, 15, 50], help="of the full run: values of K")
    parser.add_argument("--contenders", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where table and plot go")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or 3
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore")  # the libraries' and torch's own deprecations
    if options.measure:
        print(json.dumps(measure_memory(**json.loads(options.measure))))
        return
    if options.scaling:
        scaling(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    sizes = [size for size in SIZES if not options.sizes or f"{size[0]}-{size[1]}" in options.sizes]
    cases = [Case()] if options.quick else [Case(d, w, num_steps=k) for d, w in sizes for k in options.steps]
    wanted = options.contenders or (QUICK if options.quick else HYPERGRADIENTS)
    names = ["plain", *(n for n in HYPERGRADIENTS if n != "plain" and n in wanted and is_installed(n))]
    until = time.monotonic() + (QUICK_SECONDS if options.quick else float("inf"))
    stem, console = "hypergradient-quick" if options.quick else "hypergradient", Console()
    for case in cases:
        rows = measure_case(case, names, options.repeats, until, console)
        write(options.out, stem, {"case": case.as_dict(), "title": case.title, "rows": rows}, comparison_figure)
        console.print(comparison_table(case.title, rows))
    if options.quick:
        print(json.dumps(headline(rows)))


def measure_case(
    case: Case, names: Sequence[str], repeats: int, until: float, console: Console
) -> dict[str, dict[str, Any]]:
    setting = Setting(case)
    with console.status(f"{case.title}: memory"), ThreadPoolExecutor(MEMORY_PROCESSES) as pool:
        memory = dict(zip(names, pool.map(lambda name: memory_of(case, name), names), strict=True))
    with console.status(f"{case.title}: time"):
        runs = {name: HYPERGRADIENTS[name](setting) for name in names if name != "released"}
        seconds, gradients = alternate(runs, repeats, until)
        teaching = teacher_seconds(setting)
    rounds = {name: [t + teaching for t in seconds[name]] for name in OURS if name in seconds}
    rounds |= {name: seconds[name] for name in PLAIN if name in seconds}
    if "released" in names:
        with console.status(f"{case.title}: a round of the released procedure"):
            rounds["released"], seconds["released"], gradients["released"] = released_seconds(setting)
    with console.status(f"{case.title}: reference"):
        reference = REFERENCE(Setting(replace(case, dtype="float64")))()
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        rows[name] = {"memory_mib": memory[name], "seconds": seconds[name], "round_seconds": rounds.get(name)}
        if name not in PLAIN:
            rows[name]["relative_error"] = relative_error(gradients[name], reference)
        if name in ENGINES and "autograd" in gradients:
            rows[name]["to_autograd"] = relative_error(gradients[name], gradients["autograd"])
    return rows


def alternate(
    runs: dict[str, Any], repeats: int, until: float = float("inf")
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """CPU seconds of each turn, and what came of it. Taking turns spreads what else the machine does evenly.

    After the first turns, none are begun that would probably end later than `until`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gradients = {name: runs[name]() for name in ("plain", "store") if name in runs}  # not timed: they warm up
    # `recompute` gives memory back to the system. Whoever came next would pay for fetching it again.
    in_turn = sorted(runs, key=lambda name: name == "recompute")
    began = time.monotonic()
    for turn in range(repeats):
        if turn and time.monotonic() + (time.monotonic() - began) / turn > until:
            break
        for name in in_turn:
            run = runs[name]
            if name == "store":
                run()  # not timed: it fetches the memory that `store`, and those after it, keep from round to round
            # What all ratios are taken of is short, and has more turns.
            for _ in range(4 if name == "plain" else 2 if name == "store" else 1):
                spent, gradients[name] = timed(run)
                seconds[name].append(spent)
    return seconds, gradients


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def timed(run: Any) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def teacher_seconds(setting: Setting) -> float:
    """The teacher's part of a round: a step of phi, and a tenth of what the LSTM learns after ten.

    Its costs do not depend on what it is given: phi stands in for a hypergradient.
    """
    teacher, num_rounds = setting.teacher(), 20

    def rounds() -> None:
        for _ in range(num_rounds):
            version = teacher.read().version
            teacher.propose(version, setting.phi, 0.0)
            teacher.learn(version)

    return timed(rounds)[0] / num_rounds


def released_seconds(setting: Setting) -> tuple[list[float], list[float], torch.Tensor]:
    """Of a whole round of the released procedure, and of the hypergradient that is its first half; one turn each."""
    marks: list[float] = []
    run = released(setting, on_hypergradient=lambda: marks.append(time.process_time()))
    started = time.process_time()
    gradient = run()
    return [time.process_time() - started], [marks[0] - started], gradient


def memory_of(case: Case, name: str) -> float:
    """In MiB, the median of three processes: where pieces come to lie moves a peak by a tenth."""
    request = json.dumps({"case": case.as_dict(), "name": name})
    peaks = []
    for _ in range(3):
        done = subprocess.run([sys.executable, str(HERE), "--measure", request], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr[-2000:]}")
        peaks.append(json.loads(done.stdout.splitlines()[-1])["memory_mib"])
    return statistics.median(peaks)


def measure_memory(case: dict[str, Any], name: str) -> dict[str, float]:
    importlib.import_module("torch.fx.experimental.symbolic_shapes")  # which torch imports at the first product: 30 MiB
    setting = Setting(Case(**case))
    run = HYPERGRADIENTS[name](setting)
    plain(Setting(Case(num_steps=1, batch_size=2, val_batch_size=2)))()  # torch's own code and buffers come in
    return {"memory_mib": peak_growth(run)}


def peak_growth(run: Callable[[], Any]) -> float:
    """By how many MiB the resident set grows, at its peak, while this runs. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = _status_kib("VmRSS")
    run()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def ratio(rows: dict[str, dict[str, Any]], key: str, name: str, base: str) -> float | None:
    """Of medians; None where one was not measured."""
    if name not in rows or base not in rows or not rows[name].get(key) or not rows[base].get(key):
        return None
    return statistics.median(rows[name][key]) / statistics.median(rows[base][key])


def headline(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    errors = [row["to_autograd"] for row in rows.values() if "to_autograd" in row]
    values: dict[str, float | None] = {
        "round_over_plain": ratio(rows, "round_seconds", "store", "plain"),
        "memory_over_plain": rows["recompute"]["memory_mib"] / rows["plain"]["memory_mib"]
        if "recompute" in rows
        else None,
        "released_over_ours": ratio(rows, "round_seconds", "released", "store"),
        **{f"{name}_over_ours": ratio(rows, "seconds", name, "store") for name in LIBRARIES},
        "max_relative_error": max(errors, default=None),
    }
    return {key: value if value is None else float(f"{value:.3g}") for key, value in values.items()}


def comparison_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in (
        "",
        "hypergradient s",
        "x plain",
        "round s",
        "x plain",
        "peak MiB",
        "x plain",
        "to float64",
        "to autograd",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        table.add_row(
            name + (" (approximate)" if name in APPROXIMATE else ""),
            f"{statistics.median(row['seconds']):.2f}",
            _times(ratio(rows, "seconds", name, "plain")),
            f"{statistics.median(row['round_seconds']):.2f}" if row["round_seconds"] else "",
            _times(ratio(rows, "round_seconds", name, "plain")),
            f"{row['memory_mib']:,.0f}",
            _times(row["memory_mib"] / rows["plain"]["memory_mib"]),
            *(f"{row[key]:.1e}" if key in row else "" for key in ("relative_error", "to_autograd")),
        )
    return table


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def scaling(options: argparse.Namespace) -> None:
    """One thing varied at a time, from a narrow ResNet-8 with K = 15, a batch of 25 and 10 classes."""
    base = Case()
    axes: dict[str, list[tuple[float, Case]]] = {
        "K": [(k, replace(base, num_steps=k)) for k in (5, 15, 50, 100, 200)],
        "batch": [(b, replace(base, batch_size=b)) for b in (10, 25, 50, 100)],
        "width": [(w, replace(base, widths=n, num_steps=5)) for w, n in ((16, "narrow"), (64, "wide"))],
        "classes": [(c, replace(base, num_classes=c, num_steps=5)) for c in (10, 100, 1000)],
    }
    console = Console()
    for axis, points in axes.items():
        table = Table(title=f"by {axis}")
        for column in (axis, "plain s", "store x", "recompute x", "plain MiB", "store MiB", "recompute MiB"):
            table.add_column(column, justify="right")
        for value, case in points:
            names = ["plain", "recompute"] + ["store"] * (case.num_steps <= 50)
            setting = Setting(case)
            seconds, _ = alternate({name: HYPERGRADIENTS[name](setting) for name in names}, options.repeats)
            rows = {name: {"seconds": seconds[name], "memory_mib": memory_of(case, name)} for name in names}
            found = {"case": case.as_dict(), "axis": axis, "value": value, "rows": rows}
            write(options.out, "scaling", found, scaling_figure)
            table.add_row(
                f"{value:g}",
                f"{statistics.median(seconds['plain']):.2f}",
                *(_times(ratio(rows, "seconds", name, "plain")) for name in ("store", "recompute")),
                *(f"{rows[n]['memory_mib']:,.0f}" if n in rows else "" for n in ("plain", "store", "recompute")),
            )
        console.print(table)


def write(directory: Path, stem: str, table: dict[str, Any], draw: Any) -> None:
    """Puts one case's rows in the file, in place of earlier ones of that case, and draws the plot anew."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{stem}.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else []
    table |= {"date": date.today().isoformat(), "versions": versions(), "command": " ".join(sys.argv)}
    tables = [t for t in tables if (t["case"], t.get("axis")) != (table["case"], table.get("axis"))] + [table]
    tables.sort(key=lambda t: (t.get("axis", ""), t.get("value", 0), t["case"]["depth"], t["case"]["widths"]))
    path.write_text(json.dumps({"tables": tables}, indent=1) + "\n")
    draw(tables).savefig(directory / f"{stem}.png", dpi=120, bbox_inches="tight")
    print(f"wrote {path} and .png")


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "processor": _processor()}
    for name in ("torch", "higher", "torchopt", "betty-ml"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def comparison_figure(tables: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(tables)))
    axes = figure.subplots(len(tables), 2, squeeze=False)
    for (left, right), table in zip(axes, tables, strict=True):
        rows = table["rows"]
        names = [name for name in rows if name not in PLAIN][::-1]
        colors = ["0.7" if n in APPROXIMATE else "tab:blue" if n in ENGINES else "tab:orange" for n in names]
        left.barh(names, [ratio(rows, "seconds", n, "plain") or 0 for n in names], color=colors)
        left.set(xlabel="time of a hypergradient / K plain steps", title=table["title"])
        right.barh(names, [rows[n]["memory_mib"] / rows["plain"]["memory_mib"] for n in names], color=colors)
        right.set(xlabel="peak memory / K plain steps", yticks=[])
    figure.tight_layout()
    return figure


def scaling_figure(tables: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(table["axis"] for table in tables))
    figure = Figure(figsize=(3.2 * len(names), 5.5))
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, axis in enumerate(names):
        for name, color in (("plain", "0.5"), ("store", "tab:blue"), ("recompute", "tab:green")):
            points = [t for t in tables if t["axis"] == axis and name in t["rows"]]
            values = [t["value"] for t in points]
            seconds = [statistics.median(t["rows"][name]["seconds"]) for t in points]
            axes[0][column].loglog(values, seconds, "o-", color=color, label=name)
            axes[1][column].loglog(values, [t["rows"][name]["memory_mib"] for t in points], "o-", color=color)
        axes[1][column].set_xlabel(axis)
    axes[0][0].set_ylabel("CPU s")
    axes[1][0].set_ylabel("peak MiB")
    axes[0][0].legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
