"""Several workers of one machine: data is prepared once, and held in memory once."""

import re
import subprocess
import sys

import numpy as np

from l2t_ray.data.arrow import write_images

MAPS_IT = """
import re, sys
from pathlib import Path
from l2t_ray.data.arrow import read_images
images = read_images(Path(sys.argv[1])).images
images.max()                       # every page is looked at
print("mapped", flush=True)
sys.stdin.readline()               # all have mapped it
size, counts = 0, False
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-", line):
        counts = sys.argv[1] in line
    elif counts and line.startswith("Pss:"):
        size += int(line.split()[1])
print(size, flush=True)
sys.stdin.readline()               # all are measured
"""


def resident_kib(path, num_workers):
    """Memory that so many processes together hold of the file: each page counts once, in shares."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", MAPS_IT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(num_workers)
    ]

    def answers():
        said = [worker.stdout.readline() for worker in workers]
        for worker in workers:
            worker.stdin.write("go on\n")
            worker.stdin.flush()
        return said

    assert answers() == ["mapped\n"] * num_workers
    sizes = answers()
    for worker in workers:
        assert worker.wait(timeout=60) == 0
    return sum(map(int, sizes))


def test_four_workers_hold_the_images_once(tmp_path):
    path = tmp_path / "images.arrow"
    images = np.random.default_rng(0).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8)
    write_images(path, images, np.zeros(10_000, dtype=np.int64), class_names=("one",), source={})
    one, four = resident_kib(path, 1), resident_kib(path, 4)
    print(f"one worker {one} KiB, four {four} KiB")
    assert one >= images.nbytes / 1024  # it is all there
    assert four <= 1.2 * one


PREPARES = """
import sys, time
from pathlib import Path
from l2t_ray.data import catalog, published
read = published._read_mnist
def counted(kind, folder, part):
    print("converted", part, flush=True)
    time.sleep(0.5)                # or the others would come too late to do it again
    return read(kind, folder, part)
kind = published.SETS["mnist"]
object.__setattr__(kind, "read", counted)
print(len(catalog.load("mnist", root=Path(sys.argv[1]), verify=False, download=False).train))
"""


def write_mnist(folder):
    folder.mkdir(parents=True)
    for part, count in (("train", 7), ("t10k", 3)):
        for name, shape in ((f"{part}-images-idx3-ubyte", (count, 28, 28)), (f"{part}-labels-idx1-ubyte", (count,))):
            header = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">i4").tobytes()
            (folder / name).write_bytes(header + bytes(int(np.prod(shape))))


def test_a_set_is_prepared_once_by_workers_that_start_together(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    workers = [
        subprocess.Popen([sys.executable, "-c", PREPARES, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = "".join(worker.communicate(timeout=120)[0] for worker in workers)
    assert sorted(re.findall("converted \\w+", said)) == ["converted test", "converted train"]
    assert said.count("7\n") == 3
