"""The benchmark runs from end to end on a toy case, and its figures mean what they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_hypergradient", FOLDER / "hypergradient.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("contenders", None)


def test_quick_ends_with_one_line_of_json(benchmark, monkeypatch, tmp_path, capsys):
    toy = benchmark.Case(num_steps=2, batch_size=3, val_batch_size=4)
    monkeypatch.setattr(benchmark, "Case", lambda **fields: benchmark.replace(toy, **fields))
    # In this process: a fresh one for each figure takes seconds, and only the quick run needs figures to be true.
    monkeypatch.setattr(benchmark, "memory_of", lambda case, name: 10.0)
    contenders = ["plain", "store", "recompute", "autograd", "released"]
    benchmark.main(["--quick", "--repeats", "1", "--out", str(tmp_path), "--contenders", *contenders])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(figures) == [
        *("round_over_plain", "memory_over_plain", "released_over_ours"),
        *("higher_over_ours", "torchopt_over_ours", "betty_over_ours", "max_relative_error"),
    ]
    assert figures["round_over_plain"] > 1
    assert figures["higher_over_ours"] is None
    assert figures["max_relative_error"] < 1e-5  # float32
    saved = json.loads((tmp_path / "hypergradient-quick.json").read_text())
    assert list(saved["tables"][0]["rows"]) == contenders
    assert (tmp_path / "hypergradient-quick.png").stat().st_size > 0


def test_contenders_agree_in_double_precision(benchmark):
    import contenders

    case = contenders.Case(num_steps=2, batch_size=3, val_batch_size=4, dtype="float64")
    setting = contenders.Setting(case)
    expected = contenders.autograd(setting)()
    for name, build in contenders.HYPERGRADIENTS.items():
        if name not in (*contenders.PLAIN, *contenders.APPROXIMATE) and contenders.is_installed(name):
            error = (build(setting)() - expected).norm() / expected.norm()
            assert error < 1e-10, name


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the peak of the resident set is read from /proc, which this system has not",
)


@needs_proc
@pytest.mark.slow
def test_memory_of_recompute_is_two_and_a_half_times_plain_and_flat_in_the_number_of_steps(benchmark):
    plain = benchmark.memory_of(benchmark.Case(), "plain")
    theta_mib = 78_042 * 4 / 2**20  # of a narrow ResNet-8: each step's is kept
    short, long = (benchmark.memory_of(benchmark.Case(num_steps=k), "recompute") - k * theta_mib for k in (15, 60))
    assert short < 2.5 * plain and long < 2.5 * plain
    assert long < 1.1 * short


@pytest.mark.slow
@needs_proc
def test_memory_is_measured(benchmark):
    case = benchmark.Case(num_steps=2, batch_size=8, val_batch_size=8)
    assert 1 < benchmark.memory_of(case, "store") < 1000
