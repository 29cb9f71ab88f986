"""What the student has said of each training image so far: a running mean of its answers.

A student learns what is regular in its labels before it memorises those that are wrong, and its early answers remember
the former. Early-learning regularisation (Liu et al., NeurIPS 2020) holds it to them: `log(1 - <p, q>)` is the smaller,
the more its answer p agrees with its memory q, and pulls the harder, the surer both are. How much that counts is one
learned weight: a part that composes with a loss of rows (`MemoryTerm`).

Here the memory of a round's images is brought up to date before the round, by the student as it then is, and stays as
it is during the K steps: to the hypergradient it is a constant, and the derivative is exact.

Beside it stands a tally of all answers, which no loss reads: the memory is as short as the loss needs it, and a student
that is trained for long has learned wrong labels within that time. Which labels look wrong is asked of the tally
(`core/suspects.py`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.family import Bars, LossPicture
from l2t_ray.core.loss.pairs import TABLE_SCALE
from l2t_ray.core.loss.part import Part
from l2t_ray.core.student import Trainee
from l2t_ray.interfaces import Group, MethodState, Metrics, RoundBatches
from l2t_ray.parallel.gather import gathered
from l2t_ray.parallel.group import SingleProcess

DECAY = 0.7
"""Share that an image's memory keeps each time that it is seen: Liu et al.'s value for CIFAR-10."""
LEAST_DISAGREEMENT = 1e-4
"""Where 1 - <p, q> is below, nothing pulls any more: the logarithm has no bottom."""


class Said(NamedTuple):
    """Answers of all workers, by image.

    Attributes:
        images: rows of the training set, each once.
        sums: of an image's answers.
        counts: how many these are, in a column.
    """

    images: Int[Tensor, " m"]
    sums: Float[Tensor, "m c"]
    counts: Int[Tensor, "m 1"]


def nothing_remembered(num_images: int, num_classes: int, device: torch.device | str) -> Float[Tensor, "images c"]:
    return torch.zeros(num_images, num_classes, device=device)


@torch.no_grad()
def remembered(
    memory: Float[Tensor, "images c"],
    indices: Int[Tensor, " n"],
    answers: Float[Tensor, "n c"],
    group: Group | None = None,
) -> Float[Tensor, "images c"]:
    """A new memory, in which the images `indices` have their answers too; the same on every worker.

    An image that is there several times, on one worker or on many, counts once, with the mean of its answers.

    Args:
        memory: rows add up to 1 at most, and to less the fewer times an image has been seen.
        answers: probabilities, this worker's share.
    """
    return _moved(memory, by_image(indices, answers.to(memory), group))


@torch.no_grad()
def tallied(tally: Float[Tensor, "images c"], said: Said) -> Float[Tensor, "images c"]:
    """A new tally, in which these answers have been added: an image's first once, its second twice, and so on.

    Later answers are a better student's, and early ones are of one that has not yet learned its labels by heart.

    Args:
        tally: nothing at first; what a row adds up to says how many answers are in it.
    """
    turn = (1 + (1 + 8 * tally[said.images].sum(dim=1, keepdim=True)).sqrt()) / 2  # n (n + 1) / 2 of n answers
    return tally.index_add(0, said.images, turn * said.sums / said.counts)


def by_image(indices: Int[Tensor, " n"], answers: Float[Tensor, "n c"], group: Group | None = None) -> Said:
    """The same on every worker.

    Args:
        indices, answers: as in `remembered`.
    """
    # In one piece, for each gather is two sums over workers; double precision holds any index, and answers as they are.
    whole, _ = gathered(torch.cat((indices[:, None].double(), answers.double()), dim=1), group or SingleProcess())
    indices, answers = whole[:, 0].long(), whole[:, 1:].to(answers)
    seen, place, counts = indices.unique(return_inverse=True, return_counts=True)
    sums = answers.new_zeros(len(seen), answers.shape[1]).index_add_(0, place, answers)
    return Said(seen, sums, counts[:, None])


def _moved(memory: Float[Tensor, "images c"], said: Said) -> Float[Tensor, "images c"]:
    images, sums, counts = said
    return memory.index_copy(0, images, DECAY * memory[images] + (1 - DECAY) * sums / counts)


class Memory:
    """Keeps the memory of a run's training images in a method's state (`extra["memory"]`), and the tally of all answers
    (`extra["tally"]`). A row must be an image."""

    def __init__(self, trainee: Trainee, num_images: int, num_classes: int):
        self._trainee, self._shape = trainee, (num_images, num_classes)

    def begin(self) -> dict[str, Tensor]:
        return {name: nothing_remembered(*self._shape, self._trainee.device) for name in ("memory", "tally")}

    @torch.no_grad()
    def updated(self, state: MethodState, batches: RoundBatches) -> MethodState:
        """What the student, as it is before the round, says of the round's training images is remembered."""
        answers = [self._trainee.seen_rows(state.student, batch).logits.softmax(dim=1) for batch in batches.train]
        indices = torch.cat([batch.indices for batch in batches.train])
        memory = state.extra["memory"]
        tally = state.extra.get("tally", memory)  # checkpoints of earlier versions have none
        said = by_image(indices, torch.cat(answers).to(memory), self._trainee.group)
        return state._replace(extra={**state.extra, "memory": _moved(memory, said), "tally": tallied(tally, said)})


def agreement_losses(logits: Float[Tensor, "n c"], memory: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """`log(1 - <p, q>)` of each row, p = softmax(logits) and q its memory; 0 where nothing is remembered."""
    return (1 - (logits.softmax(dim=1) * memory).sum(dim=1)).clamp(min=LEAST_DISAGREEMENT).log()


@dataclass(frozen=True)
class MemoryTerm(Part):
    """What the memory adds to a row's loss: `w log(1 - <p, q>)`, with a learned w between 0 and twice `start`."""

    start: float

    @property
    def num_weights(self) -> int:
        return 1

    def weight(self, entry: Float[Tensor, "1"]) -> Float[Tensor, ""]:
        """w; `start` where its entry is zero."""
        # An entry of one dimension: forward mode makes double precision of a product of numbers and a tensor of none.
        return (2 * self.start * (TABLE_SCALE * entry).sigmoid()).squeeze(0)

    def losses(
        self, entry: Float[Tensor, "1"], logits: Float[Tensor, "n c"], memory: Float[Tensor, "n c"]
    ) -> Float[Tensor, " n"]:
        return self.weight(entry) * agreement_losses(logits, memory)

    def report(self, numbers: Float[Tensor, "1"]) -> Metrics:
        return {"memory_weight": self.weight(numbers).item()}

    def describe(self, numbers: Float[Tensor, "1"]) -> str:
        return _CARD.format(weight=self.weight(numbers).item())

    def pictures(self, numbers: Float[Tensor, "1"]) -> list[LossPicture]:
        return [Bars("weight of the memory", {"memory": self.weight(numbers).item()}, start=self.start)]


_CARD = """It has a memory too, of the weight {weight:.3g}, which counts where it is given one (rows are the images
of your training set). In training it was brought up to date before each round; at each step is as good a time:

```python
from l2t_ray.core.loss.memory import nothing_remembered, remembered

memory = nothing_remembered(num_images, num_classes, device)
for images, labels, indices in batches:
    logits = student(images)
    memory = remembered(memory, indices, logits.detach().softmax(dim=1))
    loss(logits, labels, memory=memory[indices]).backward()
```
"""


class NoMemory(Part):
    """A loss that knows the moment alone."""

    def losses(self, entry: Tensor, logits: Tensor, memory: Tensor) -> Tensor:
        raise ValueError("this loss has no memory: leave the argument `memory` out.")
