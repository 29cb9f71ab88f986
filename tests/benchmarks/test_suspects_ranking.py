"""What is measured of two lists of suspicious labels, and that cleanlab's students never saw what they judge."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from l2t_ray.assembly.sources import source_of
from l2t_ray.settings import experiment as configuration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("cleanlab")
    spec = importlib.util.spec_from_file_location("benchmark_suspects", ROOT / "benchmarks/suspects.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_ranking_is_measured_by_what_stands_first_and_by_what_is_called_wrong(benchmark):
    wrong = np.array([True, False, True, False])
    ranking = benchmark.Ranking(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, True, False, False]))
    measured = benchmark.measures(ranking, wrong)
    assert measured["auroc"] == 0.75  # of the four pairs one is the wrong way round
    assert measured["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert measured["precision_at_wrong"] == 0.5
    assert measured["brier"] == pytest.approx((0.1**2 + 0.8**2 + 0.3**2 + 0.1**2) / 4)
    assert (measured["found_precision"], measured["found_recall"]) == (0.5, 0.5)


def test_each_image_is_asked_of_a_student_that_was_trained_without_it(benchmark, monkeypatch):
    config = configuration.load(ROOT / "configs/quick.yaml", benchmark.ALONE)
    source = source_of(config)
    rows, seen = np.sort(source.split(0).train), []

    def answers(config, source, split, *, has_clean):
        assert not np.intersect1d(split.train, split.validation).size and not has_clean
        assert np.array_equal(np.union1d(*split), rows)
        seen.append(config.training.num_rounds)
        return np.eye(10)[source.labels().observed[split.validation]]

    monkeypatch.setattr(benchmark, "answers", answers)
    rankings = benchmark.of_cleanlab(config, source, budget=1)
    assert seen == [8] * 5  # of 40 rounds
    assert all((ranking.scores < 1e-6).all() and not ranking.found.any() for ranking in rankings.values())


def test_a_row_that_is_measured_again_replaces_the_old_one(benchmark, tmp_path):
    for auroc, seed in ((0.5, 0), (0.6, 1), (0.7, 0)):
        benchmark.keep(tmp_path / "rows.json", "quick", "suspects", seed, {"auroc": auroc})
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sorted((row["seed"], row["auroc"]) for row in rows) == [(0, 0.7), (1, 0.6)]
