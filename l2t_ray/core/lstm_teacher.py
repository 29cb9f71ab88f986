"""The LSTM that rewrites the loss network, one coordinate at a time (supplement, Secs. 3 and 5.1).

Its weights `psi` are shared by all coordinates of phi; each coordinate has its own hidden and cell states. It reads
the preprocessed hypergradient of a coordinate and says how far to move it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Head = Literal["hidden", "linear"]
LstmState = list[tuple[Float[Tensor, "m h"], Float[Tensor, "m h"]]]


def preprocess_gradient(g: Float[Tensor, "*shape"], p: float = 10.0) -> Float[Tensor, "*shape 2"]:
    """Eq. (27): `(log|g| / p, sgn g)` where |g| >= e^-p, else `(-1, e^p g)`. Continuous at the joint."""
    is_large = g.abs() >= math.exp(-p)
    safe = torch.where(is_large, g.abs(), torch.ones_like(g))
    magnitude = torch.where(is_large, safe.log() / p, -torch.ones_like(g))
    direction = torch.where(is_large, g.sign(), math.exp(p) * g)
    return torch.stack((magnitude, direction), dim=-1)


class LSTMTeacher(nn.Module):
    """A stack of LSTM cells over coordinates.

    Args:
        cells: hidden units of each cell (paper: 64, 64, 64, 1; 84,236 weights).
        head: `hidden`: the last cell's hidden state is the output, in (-1, 1) (released code; the last cell must have
            one unit); `linear`: a linear map on it, started at zero, so that the teacher begins by leaving the loss
            alone instead of drifting every coordinate alike.
        seed: of the initial weights. The global generator is neither read nor moved.

    Raises:
        ValueError: if `head` is `hidden` and the last cell has more than one unit.
    """

    def __init__(self, cells: Sequence[int] = (64, 64, 64, 1), *, head: Head = "hidden", seed: int = 0):
        super().__init__()
        if head == "hidden" and cells[-1] != 1:
            raise ValueError(f"head 'hidden' needs a last cell of 1 unit, got cells {tuple(cells)}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = [2, *cells[:-1]]
            self.cells = nn.ModuleList(nn.LSTMCell(i, h) for i, h in zip(inputs, cells, strict=True))
            self.head = nn.Linear(cells[-1], 1) if head == "linear" else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def initial_state(self, num_coordinates: int) -> LstmState:
        weight = next(self.parameters())
        return [
            (weight.new_zeros(num_coordinates, cell.hidden_size), weight.new_zeros(num_coordinates, cell.hidden_size))
            for cell in self._cells()
        ]

    def forward(self, inputs: Float[Tensor, "m 2"], state: LstmState) -> tuple[Float[Tensor, " m"], LstmState]:
        """One step for all m coordinates: the outputs, and the states after it."""
        new_state: LstmState = []
        x = inputs
        for cell, cell_state in zip(self._cells(), state, strict=True):
            x, c = cell(x, cell_state)
            new_state.append((x, c))
        output = x if self.head is None else self.head(x)
        return output.squeeze(-1), new_state

    def _cells(self) -> list[nn.LSTMCell]:
        return [cell for cell in self.cells if isinstance(cell, nn.LSTMCell)]
