"""A file of a learned loss that was cut or changed anywhere is refused, or was not changed after all."""

import random
from pathlib import Path
from typing import cast

import pytest
import torch
from harness import in_place

from l2t_ray.core.loss.family import KeptFamily
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.loss.terms import TermLoss


def originals() -> list[LearnedLoss]:
    networks = [
        DynamicLossNetwork(hidden=3, layers=2),
        DynamicLossNetwork(hidden=4, layers=3, pairs="softmax", activation="silu", label_table=3, memory=3.0),
        DynamicLossNetwork(layers=0, pairs="softmax", channel=4),
    ]
    spread = {"l_box": [[0.5, 0.5, 1.0], [1.0, 2.0, 3.0]]}
    terms = [
        TermLoss({"cross_entropy": ["sky", "road"], "jaccard": ["all"]}, shares={"cross_entropy": [0.7, 0.3]}),
        TermLoss({"l_box": ["8", "16"]}, shares={"l_box": [2.0, 3.0]}, knots={"l_box": [0.5, 1.5]}, spread=spread),
    ]
    generator = torch.Generator().manual_seed(0)
    moved = [LearnedLoss(family, torch.randn(family.num_weights, generator=generator)) for family in terms]
    return [*(LearnedLoss(PairLoss(network)) for network in networks), *moved]


def damaged(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """One fault: bits flipped, a piece lost, doubled, zeroed, moved, or taken from another file."""
    a, b = sorted((generator.randrange(len(data) + 1), generator.randrange(len(data) + 1)))
    match generator.choice(("flip", "flip", "cut", "lose", "double", "zero", "swap", "splice", "digit")):
        case "flip":
            changed = bytearray(data)
            for _ in range(generator.choice((1, 1, 2, 8))):
                changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            return bytes(changed)
        case "cut":
            return data[:a]
        case "lose":
            return data[:a] + data[b:]
        case "double":
            return data[:b] + data[a:]
        case "zero":
            return data[:a] + bytes(b - a) + data[b:]
        case "swap":
            return data[a:b] + data[:a] + data[b:]
        case "splice":
            return data[:a] + other[a:]
        case _:  # another number in the header, whose length stays
            digits = [i for i in range(8, 400) if data[i : i + 1].isdigit()]
            place = generator.choice(digits)
            return data[:place] + str(generator.randrange(10)).encode() + data[place + 1 :]


def try_loss_files(tally, path: Path, number: int, seed: int) -> None:
    generator, losses = random.Random(seed), originals()
    whole = []
    for loss in losses:
        loss.save(path)
        whole.append(path.read_bytes())
    for _ in range(number):
        which = generator.randrange(len(losses))
        path.write_bytes(damaged(whole[which], generator.choice(whole), generator))

        def is_right(loaded: LearnedLoss, loss=losses[which]) -> bool:
            one, other = (cast(KeptFamily, each.family).spec for each in (loaded, loss))
            return one == other and torch.equal(loaded.phi, loss.phi)

        verdict, seen = in_place(lambda: LearnedLoss.load(path), is_right, refusals=(ValueError,))
        if verdict == "wrong":  # pieces of two files may make up the other one
            verdict = "right" if path.read_bytes() in whole else verdict
        tally.add(path.read_bytes()[:400], verdict, seen)


def test_any_damage_to_a_learned_loss(tally, tmp_path):
    counted = tally("learned losses, damaged")
    try_loss_files(counted, tmp_path / "loss.safetensors", number=200, seed=0)
    counted.check(at_least=200)


@pytest.mark.slow
def test_any_damage_to_a_learned_loss_at_length(tally, tmp_path):
    counted = tally("learned losses, damaged")
    try_loss_files(counted, tmp_path / "loss.safetensors", number=10_000, seed=1)
    counted.check(at_least=10_000)
