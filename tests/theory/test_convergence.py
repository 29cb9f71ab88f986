"""The whole check, quick: what it writes, and that it says what it found."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from l2t_ray.theory import convergence
from l2t_ray.theory.findings import Findings


class Result(NamedTuple):
    out: Path
    findings: Findings
    summary: dict
    parts: list[str]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out, parts = tmp_path_factory.mktemp("convergence"), []
    findings = convergence.measure(convergence.Effort.quick(450), seed=0, announce=parts.append)
    return Result(out, findings, convergence.write(findings, out), parts)


def test_summary(result):
    out, summary = result.out, result.summary
    assert len(result.parts) + 1 == convergence.NUM_PARTS  # the figures are announced by `run`
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["hessians"] == 450 and summary["checks_of_random_hessians"] == 450 * 7
    assert summary["violations_conclusion_1"] == summary["violations_sharp_bound"] == 0
    assert summary["worst_identity_error"] < 1e-12 and summary["slope_error"] < 1e-4
    assert summary["two_objectives"]["spectral_radius"] < 1


def test_tables(result):
    out, summary = result.out, result.summary
    with (out / "bounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["checks"]) for row in rows) == summary["checks_of_random_hessians"]
    with (out / "saddles.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in summary["growth"]]


@pytest.mark.parametrize("name", ["escape_time", "growth", "gain", "trajectories"])
def test_figures_are_small_and_not_blank(result, name):
    path = result.out / "figures" / f"convergence_{name}.png"
    assert path.stat().st_size < 80_000
    with Image.open(path) as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_violations_are_counted_not_assumed(result):
    """Checks that fail appear in the summary: a gain below 1 is not quietly dropped."""
    (sizes, checks), *rest = result.findings.hessians
    broken = checks._replace(violates_sharp_bound=torch.ones_like(checks.violates_sharp_bound))
    summary = convergence.summarise(result.findings._replace(hessians=[(sizes, broken), *rest]))
    assert summary["violations_sharp_bound"] == len(checks.gain)
