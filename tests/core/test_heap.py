"""What the allocator keeps and gives back, seen from the outside: the resident set of a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from l2t_ray.core import heap

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="only glibc's allocator is steered")

PROGRAM = """
import torch
from pathlib import Path
from l2t_ray.core.heap import keep_freed_memory, returned_memory

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


HUGE_PAGES = """
import torch
from pathlib import Path
from l2t_ray.core.heap import keep_freed_memory, returned_memory, use_huge_pages

def huge_mib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) / 1024

def taken():
    before = huge_mib()
    pieces = [torch.ones(1 << 18) for _ in range(60)]
    return huge_mib() - before

use_huge_pages()
unasked = taken()
keep_freed_memory()
use_huge_pages()
first = taken()
with returned_memory():
    pass
use_huge_pages()
print(unasked, first, taken())
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="the system does not let programs choose",
)
def test_the_heap_grows_in_large_pages_once_asked():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", HUGE_PAGES], capture_output=True, text=True, check=True, cwd=root)
    unasked, first, again = map(float, done.stdout.split())
    assert unasked == 0
    assert first > 50 and again > 50  # of 60 MiB


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.keep_freed_memory()
    heap.use_huge_pages()
    with heap.returned_memory():
        pass
