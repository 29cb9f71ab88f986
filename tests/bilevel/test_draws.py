"""Random numbers inside the student come from a place that is known, and the rest of the process does not notice."""

import random

import numpy as np
import torch

from l2t_ray.bilevel.draws import counted_draws, drawn_from, standing_draws, unmoved_draws

CPU = torch.device("cpu")


def drawn():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002


def test_what_is_drawn_follows_from_the_seed_alone():
    with counted_draws(2**62 + 3, CPU):
        first = drawn()
    drawn()
    with counted_draws(2**62 + 3, CPU):
        assert drawn() == first
    for other in (4, 2**62 + 4):
        with counted_draws(other, CPU):
            assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_the_streams_of_the_process_stand_where_they_stood():
    start = standing_draws(CPU)
    expected = [drawn(), drawn()]
    with drawn_from(start, CPU):
        first = drawn()
        with counted_draws(0, CPU):
            drawn()
        with unmoved_draws(CPU):
            drawn()
        assert [first, drawn()] == expected


def test_the_streams_are_put_back_where_a_model_fails():
    before = standing_draws(CPU)
    try:
        with counted_draws(1, CPU):
            drawn()
            raise ValueError
    except ValueError:
        pass
    assert torch.equal(torch.get_rng_state(), before.torch)
    assert random.getstate() == before.python
