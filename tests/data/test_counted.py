import subprocess
import sys

from l2t_ray.data.counted import numpy_generator, torch_seed


def test_same_name_same_bytes():
    assert numpy_generator(1, "order", 2, 3).bytes(16) == numpy_generator(1, "order", 2, 3).bytes(16)


def test_every_part_of_the_name_counts():
    names = [(1, "order", 2, 3), (2, "order", 2, 3), (1, "noise", 2, 3), (1, "order", 3, 2), (1, "order", 2)]
    names += [(1, "order", 23), (12, "order", 3)]  # digits must not run into each other
    assert len({numpy_generator(*name).bytes(16) for name in names}) == len(names)
    assert len({torch_seed(*name) for name in names}) == len(names)


def test_does_not_depend_on_the_process():
    """Python's own `hash` of a string does; these are the bits that every run is to see."""
    code = "from l2t_ray.data.counted import torch_seed; print(torch_seed(7, 'augment', 1, 2))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == torch_seed(7, "augment", 1, 2) == 8850669399349959523
