"""Noise in boxes: shifted, scaled, dropped and mislabelled ones, each box with the same chance.

Shifts and scales are those of OA-MIL (Liu et al., ECCV 2022): the centre moves by up to `strength` of the box's width
and height, its sides change by factors from `1 - strength` to `1 + strength`, uniformly drawn for each side.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from l2t_ray.data.boxed_sets import BoxedSet, Boxes, clipped
from l2t_ray.data.counted import numpy_generator
from l2t_ray.interfaces import UserError

BoxNoise = Literal["shifted", "scaled", "dropped", "mislabelled", "mixed"]
KINDS: tuple[BoxNoise, ...] = ("shifted", "scaled", "dropped", "mislabelled")
"""Of one box; `mixed` draws one of these for each that is hit."""


class NoisyBoxes(NamedTuple):
    """The boxes of each image under noise, and for each of its clean ones whether it was hit."""

    boxes: Sequence[Boxes]
    is_hit: Sequence[Bool[np.ndarray, " k"]]


def noisy_boxes(images: BoxedSet, kind: BoxNoise, rate: float, *, strength: float, seed: int) -> NoisyBoxes:
    """Hits each box with probability `rate`. Crowds are left alone; boxes stay within their image.

    What is drawn for a box depends on `seed` and its place in the set alone: a higher rate hits the same boxes and
    others, and another kind hits the same ones.

    Raises:
        UserError: if `rate` is outside [0, 1) or `strength` outside (0, 1), or a box shall be mislabelled where there
            is one class.
    """
    if not 0 <= rate < 1:
        raise UserError(f"data.noise.rate must be in [0, 1), got {rate}.")
    if not 0 < strength < 1:
        raise UserError(f"data.noise.strength must be in (0, 1), got {strength}.")
    num_classes = len(images.class_names)
    if num_classes < 2 and kind in ("mislabelled", "mixed"):
        raise UserError(
            f"data.noise.kind={kind} needs at least 2 classes, and the boxes have one; set data.noise.kind=shifted."
        )
    made = [
        _of_image(boxes, kind, rate, strength, num_classes, numpy_generator(seed, "box-noise", row), size)
        for row, (boxes, size) in enumerate(zip(images.boxes, images.sizes.tolist(), strict=True))
    ]
    return NoisyBoxes([boxes for boxes, _ in made], [is_hit for _, is_hit in made])


def _of_image(
    boxes: Boxes,
    kind: BoxNoise,
    rate: float,
    strength: float,
    num_classes: int,
    draw: np.random.Generator,
    size: Sequence[int],
) -> tuple[Boxes, Bool[np.ndarray, " k"]]:
    count = len(boxes.labels)
    is_hit = (draw.random(count) < rate) & ~boxes.crowd
    which: Int[np.ndarray, " k"] = draw.integers(0, len(KINDS), count)
    shifts, scales = draw.uniform(-strength, strength, (2, count, 2))
    others = draw.integers(1, max(2, num_classes), count)
    if kind != "mixed":
        which = np.full(count, KINDS.index(kind))

    def hit_by(name: BoxNoise) -> Bool[np.ndarray, " k"]:
        return is_hit & (which == KINDS.index(name))

    centres = (boxes.corners[:, :2] + boxes.corners[:, 2:]) / 2
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    moved = centres + shifts * sides * hit_by("shifted")[:, None]
    grown = sides * (1 + scales * hit_by("scaled")[:, None])
    is_moved = hit_by("shifted") | hit_by("scaled")
    corners = np.concatenate((moved - grown / 2, moved + grown / 2), axis=1)
    corners = np.where(is_moved[:, None], corners, boxes.corners)  # to the bit where nothing moved
    labels = np.where(hit_by("mislabelled"), (boxes.labels + others) % max(1, num_classes), boxes.labels)
    kept = Boxes(corners, labels, boxes.crowd).at(~hit_by("dropped"))
    return clipped(kept, size[0], size[1]).boxes, is_hit
