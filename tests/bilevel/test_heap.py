"""What the allocator keeps and gives back, seen from the outside: the resident set of a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from l2t_ray.bilevel import heap

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="only glibc's allocator is steered")

PROGRAM = """
import torch
from pathlib import Path
from l2t_ray.bilevel.heap import keep_freed_memory, returned_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def churn(num=50, mib=2):
    pieces = [torch.ones(mib << 18) for _ in range(num)]
    del pieces
    return resident_mib()

keep_freed_memory()
before = resident_mib()
kept = churn() - before
with returned_memory():
    trimmed = resident_mib() - before
    returned = churn(num=150) - before
again = churn(num=150) - before
print(kept, trimmed, returned, again)
"""


def test_memory_is_kept_but_for_where_it_is_returned():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=root)
    kept, trimmed, returned, again = map(float, done.stdout.split())
    assert kept > 90 and again > 290  # of 50 and of 150 pieces of 2 MiB
    assert trimmed < 10
    assert returned < 110  # what was kept once is used first; all beyond it is given back


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.keep_freed_memory()
    with heap.returned_memory():
        pass
