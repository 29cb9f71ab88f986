"""Random numbers that are drawn inside a student: dropout, stochastic depth, noise of its own.

A module draws from the process's global streams (PyTorch's on each device, NumPy's, Python's). Here these are put to a
place that is known and back again, so that a pass that is computed again sees the masks of the first time, a round's
masks follow from its number alone, and what the rest of the process draws is neither seen nor moved. To note a place
and to go back to it takes a tenth of a millisecond each: nothing beside a student step, too much for each layer.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ONE_AT_A_TIME = threading.RLock()
"""Held by whoever trains in a thread of several: it would move the streams that the others draw from."""


class RandomStates(NamedTuple):
    """Where the global streams stand."""

    torch: Tensor
    cuda: Tensor | None  # of the student's device
    numpy: Any
    python: Any


def standing_draws(device: torch.device) -> RandomStates:
    """Where the streams stand now, that of `device` among them."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return RandomStates(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())  # noqa: NPY002


@contextmanager
def drawn_from(draws: RandomStates, device: torch.device) -> Iterator[None]:
    """Inside, what is drawn comes from that place on. Afterwards the streams stand as before."""
    before = standing_draws(device)
    _put(draws, device)
    try:
        yield
    finally:
        _put(before, device)


@contextmanager
def counted_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, what is drawn follows from the seed alone. Afterwards the streams stand as before.

    Args:
        seed: in [0, 2^63), as `data.counted.torch_seed` gives it.
    """
    before = standing_draws(device)
    begun_from(seed, device)
    try:
        yield
    finally:
        _put(before, device)


def begun_from(seed: int, device: torch.device) -> None:
    """Puts the global streams where this seed, in [0, 2^63), begins."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every device
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
    random.seed(seed)


@contextmanager
def unmoved_draws(device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn again afterwards."""
    with drawn_from(standing_draws(device), device):
        yield


def _put(draws: RandomStates, device: torch.device) -> None:
    torch.set_rng_state(draws.torch)
    if draws.cuda is not None:
        torch.cuda.set_rng_state(draws.cuda, device)
    np.random.set_state(draws.numpy)  # noqa: NPY002
    random.setstate(draws.python)
