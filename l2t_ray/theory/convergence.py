"""Runs every check of the supplement's Section 1, and writes what came out: tables, figures and a summary."""

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from l2t_ray.theory.different_objectives import attracting_saddle, student_growth
from l2t_ray.theory.escape_studies import (
    START_RADIUS,
    control_slope,
    escape_by_start,
    escape_by_step_size,
    growth_at,
)
from l2t_ray.theory.findings import Findings
from l2t_ray.theory.loss_network_pair import FoundSaddles, blobs_pair, joint_saddles, loss_network_saddles
from l2t_ray.theory.random_hessians import STEP_SIZE_EDGES, HessianChecks, check_hessians, check_random_hessians
from l2t_ray.theory.saddles import strict_examples

# The student's loss network, from none at all to a random one.
PHI_SCALES = (0.0, 0.25, 0.5, 1.0)

NUM_PARTS = 7  # how often `run` announces what comes next


class Effort(NamedTuple):
    """How much is run; a quick run gives the same tables from fewer draws."""

    num_hessians: int
    num_starts: int
    num_searches: int  # for saddles of the student and its loss network
    etas: tuple[float, ...]
    control_radii: tuple[float, ...]

    @classmethod
    def full(cls, num_hessians: int) -> "Effort":
        return cls(num_hessians, 20, 6, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (3e-4, 1e-3, 3e-3, 1e-2))

    @classmethod
    def quick(cls, num_hessians: int) -> "Effort":
        return cls(min(num_hessians, 2000), 8, 2, (0.1, 0.5, 1.0), (1e-3, 3e-3, 1e-2))


def run(
    out: Path, *, num_hessians: int, seed: int, quick: bool = False, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Runs all checks and writes what they found to the directory `out`.

    Args:
        announce: is told what comes next, before each part.

    Returns:
        What `summary.json` holds.
    """
    effort = Effort.quick(num_hessians) if quick else Effort.full(num_hessians)
    findings = measure(effort, seed=seed, announce=announce)
    announce("figures")
    return write(findings, out)


def measure(effort: Effort, *, seed: int, announce: Callable[[str], None]) -> Findings:
    """All numbers, nothing written."""
    generator = torch.Generator().manual_seed(seed)
    announce("random Hessians")
    hessians = list(check_random_hessians(effort.num_hessians, seed=seed))
    announce("escape time against step size")
    by_step_size = escape_by_step_size(effort.etas, num_starts=effort.num_starts, generator=generator)
    announce("negative control")
    by_start = escape_by_start(effort.control_radii, num_starts=effort.num_starts, generator=generator)
    slope = control_slope(generator=generator)
    announce("saddles of a student and its loss network")
    pair = blobs_pair(generator=generator)
    found = [
        search(pair, num_starts=effort.num_searches, generator=generator)
        for search in (joint_saddles, loss_network_saddles)
    ]
    announce("growth at strict saddles")
    saddles = strict_examples(generator=generator) + [kind.saddles[0] for kind in found if kind.saddles]
    growth, distances = [], {}
    for saddle in saddles:
        row, distances[saddle.name] = growth_at(saddle, num_starts=effort.num_starts, generator=generator)
        growth.append(row)
    announce("a student that descends another loss")
    phi = torch.randn(pair.num_phi, dtype=torch.float64, generator=generator)
    run_student = partial(student_growth, pair, start_radius=START_RADIUS, num_rounds=5, teacher_rate=0.1)
    students = [(scale, run_student(scale * phi, generator=generator)) for scale in PHI_SCALES]
    checks = _check_found(found, generator=generator)
    return Findings(hessians, by_step_size, by_start, slope, growth, distances, found, checks, students)


def write(findings: Findings, out: Path) -> dict[str, Any]:
    """Writes `figures/*.png`, `summary.json`, `bounds.csv`, `saddles.csv` and `escape.csv`; returns the summary."""
    from l2t_ray.theory.convergence_figures import (
        draw_all,  # matplotlib takes seconds to import, and only this needs it
    )

    out.mkdir(parents=True, exist_ok=True)
    draw_all(findings, out / "figures")
    _write_table(out / "bounds.csv", _bound_rows(findings.hessians))
    _write_table(out / "saddles.csv", [row._asdict() for row in findings.growth])
    _write_table(out / "escape.csv", [row._asdict() for row in findings.by_step_size])
    summary = summarise(findings)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def summarise(findings: Findings) -> dict[str, Any]:
    """The findings as plain numbers. The first five keys are the verdict."""
    checks = [checks for _, checks in findings.hessians]
    joined = HessianChecks(*(torch.cat(column) for column in zip(*checks, strict=True)))
    inside = joined.eta_c_max <= 1
    found = findings.found_checks
    trap = attracting_saddle(gamma=0.25, coupling=1.0, eta=0.1)
    return {
        "hessians": sum(len(rows.gain) for rows in checks) // (len(STEP_SIZE_EDGES) - 1),
        "violations_conclusion_1": int(joined.violates_conclusion_1.sum()),
        "violations_sharp_bound": int(joined.violates_sharp_bound.sum()),
        "worst_identity_error": joined.identity_error.max().item(),
        "slope_error": max(row.slope_error for row in findings.growth),
        "checks_of_random_hessians": len(joined.gain),
        "smallest_gain": joined.gain.min().item(),
        "largest_c_over_c_max": joined.c_ratio.max().item(),
        "complex_spectra_with_eta_c_max_up_to_1": int((joined.is_complex & inside).sum()),
        "complex_spectra_beyond": int((joined.is_complex & ~inside).sum()),
        "share_complex_beyond": joined.is_complex[~inside].double().mean().item(),
        "quartic_escape_by_step_size": [row._asdict() for row in findings.by_step_size],
        "escape_by_start_radius": [row._asdict() for row in findings.by_start],
        "control_slope": findings.control_slope,
        "growth": [row._asdict() for row in findings.growth],
        "searches": [
            {"starts": kind.num_starts, "stationary": kind.num_stationary, "strict_saddles": len(kind.saddles)}
            for kind in findings.found
        ],
        "found_saddles_checks": len(found.gain),
        "found_saddles_violations_conclusion_1": int(found.violates_conclusion_1.sum()),
        "found_saddles_violations_sharp_bound": int(found.violates_sharp_bound.sum()),
        "found_saddles_smallest_gain": found.gain.min().item(),
        "student_growth": [
            {"phi_scale": scale, **{key: value for key, value in student._asdict().items() if key != "distances"}}
            for scale, student in findings.students
        ],
        "two_objectives": {
            "error_smallest_curvature": torch.linalg.eigvalsh(trap.error_hessian)[0].item(),
            "spectral_radius": torch.linalg.eigvals(trap.iteration).abs().max().item(),
        },
    }


def _check_found(found: Sequence[FoundSaddles], *, generator: torch.Generator) -> HessianChecks:
    """Both bounds at every saddle that was found, at step sizes below and beyond the condition.

    Raises:
        ValueError: if no search found any.
    """
    eta_c_max = torch.tensor([0.01, 0.1, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    rows = []
    if not any(kind.saddles for kind in found):
        raise ValueError(f"no strict saddle was found from {sum(kind.num_starts for kind in found)} starts.")
    for saddle in (saddle for kind in found for saddle in kind.saddles):
        hessian = saddle.hessian().expand(len(eta_c_max), -1, -1)
        u = torch.randn(hessian.shape[:2], dtype=torch.float64, generator=generator)
        rows.append(check_hessians(hessian, eta_c_max, u, split=saddle.split))
    return HessianChecks(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _bound_rows(hessians: Sequence[tuple[tuple[int, int], HessianChecks]]) -> list[dict[str, Any]]:
    """One row for each pair of block sizes and interval of step sizes."""
    rows = []
    for (first, second), checks in hessians:
        for low, high in pairwise(STEP_SIZE_EDGES):
            here = (checks.eta_c_max >= low) & (checks.eta_c_max < high)
            rows.append(
                {
                    "block_1": first,
                    "block_2": second,
                    "eta_c_max_from": low,
                    "eta_c_max_to": high,
                    "checks": int(here.sum()),
                    "violations_conclusion_1": int(checks.violates_conclusion_1[here].sum()),
                    "violations_sharp_bound": int(checks.violates_sharp_bound[here].sum()),
                    "smallest_gain": checks.gain[here].min().item(),
                    "share_complex": checks.is_complex[here].double().mean().item(),
                    "worst_identity_error": checks.identity_error[here].max().item(),
                }
            )
    return rows


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
