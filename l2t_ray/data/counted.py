"""Counted randomness: every draw comes from a generator named by (seed, purpose, counters).

Nothing is carried from draw to draw. A run resumed at round 700, or on another number of workers, therefore draws what
the undisturbed run drew. Purposes keep streams apart that happen to share their counters.
"""

import hashlib

import numpy as np


def _digest(seed: int, purpose: str, counters: tuple[int, ...]) -> bytes:
    # Python's own hash() of a string changes with every process, hence a digest of the written-out name.
    name = "/".join([purpose, str(int(seed)), *(str(int(counter)) for counter in counters)])
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator of its own for one purpose and one place in the run.

    Args:
        seed: the run's seed; any integer.
        purpose: what is drawn, e.g. `"noise"`; free of `/`.
        counters: epoch, round, step, whatever tells this draw from others of the same purpose.

    Returns:
        A generator whose bits depend on the arguments alone. (NumPy keeps the bits of `PCG64` for ever, what
        `Generator` makes of them within one NumPy version.)
    """
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, purpose, counters), "big")))


def torch_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2^63) for `torch.Generator.manual_seed`, counted like `numpy_generator`."""
    return int.from_bytes(_digest(seed, purpose, counters)[:8], "big") >> 1
