"""The loss network's derivatives in closed form, for engines that differentiate its gradient again.

Autograd makes some six hundred small operations of a student step's loss; at this network's size each costs its call
and nothing else. Written out it is a tenth of the step's overhead (benchmarks/).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten
_SLOPE = 0.01  # of leaky ReLU below zero


def closed_form_losses(
    activation: Literal["leaky_relu", "silu"],
    phi: Float[Tensor, " m"],
    shapes: Sequence[tuple[int, int]],
    pairs: Float[Tensor, "*batch 2"],
    table_entries: Float[Tensor, "*batch"] | None,
) -> Float[Tensor, "*batch"]:
    """As `loss_network.pair_losses`, with a first derivative in `pairs` and `table_entries` only.

    That one may be differentiated once more, in `phi` as well. For the engines, which never ask for the first
    derivative in `phi`: a function of autograd's cannot leave out what nobody wants.
    """
    rows = pairs.reshape(-1, 2)
    entries = None if table_entries is None else table_entries.reshape(-1, 1)
    return _Losses.apply(activation, shapes, phi, rows, entries).view(pairs.shape[:-1])  # pyright: ignore


def _matrices(phi: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    sizes = [rows * columns for rows, columns in shapes]
    pieces = phi.split([*sizes, len(phi) - sum(sizes)])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=False)]


def _with_constants(rows: Tensor, entries: Tensor | None, one: float) -> Tensor:
    """The network's input [p_true, p_other, 1, r]; or, with `one` 0, a direction in it."""
    zero_or_entries = rows.new_zeros(len(rows), 1) if entries is None else entries
    return torch.cat((rows, rows.new_full((len(rows), 1), one), zero_or_entries), dim=1)


class _Losses(torch.autograd.Function):
    """With h_0 the input, a_l = W_l h_{l-1} and h_l = f(a_l), the loss is a_L."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, activation: str, shapes: Any, phi: Tensor, rows: Tensor, entries: Tensor | None
    ) -> Tensor:
        function = F.silu if activation == "silu" else F.leaky_relu
        first, *others = _matrices(phi, shapes)
        inputs = _with_constants(rows, entries, 1.0)
        sums = [inputs @ first.T]
        for matrix in others:
            sums.append(function(sums[-1]) @ matrix.T)
        ctx.save_for_backward(phi, rows, entries, inputs, *sums[:-1])
        ctx.activation, ctx.shapes = activation, shapes
        return sums[-1].squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        phi, rows, entries, inputs, *sums = ctx.saved_tensors
        found: Any = _LossesBackward.apply(ctx.activation, ctx.shapes, gradient, phi, rows, entries, inputs, *sums)
        in_rows, in_entries = found
        return None, None, None, in_rows, in_entries


class _LossesBackward(torch.autograd.Function):
    """d_L = g and d_{l-1} = (W_l^T d_l) f'(a_{l-1}) back to d_1; the gradient in h_0 is W_1^T d_1."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any,
        activation: str,
        shapes: Any,
        gradient: Tensor,
        phi: Tensor,
        rows: Tensor,
        entries: Tensor | None,
        inputs: Tensor,
        *sums: Tensor,
    ) -> Any:
        first, *others = _matrices(phi, shapes)
        deltas = [gradient[:, None]]
        for matrix, a in zip(others[::-1], sums[::-1], strict=True):
            back = deltas[-1] @ matrix
            deltas.append(_times_slope(activation, back, a))
        in_inputs = deltas[-1] @ first
        ctx.save_for_backward(phi, inputs, *sums, *deltas)
        ctx.activation, ctx.shapes, ctx.has_entries = activation, shapes, entries is not None
        ctx.set_materialize_grads(False)
        return in_inputs[:, :2], None if entries is None else in_inputs[:, 3:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along_rows: Tensor | None, along_entries: Tensor | None) -> Any:  # pyright: ignore
        """Of P = <v, gradient in h_0>, which is <g, a_L'> with a' and h' the derivatives of a and h along v.

        The derivative of P in a_l' is d_l; with e_l that in a_l, e_L = 0 and u = W_{l+1}^T d_{l+1},

            e_l = (W_{l+1}^T e_{l+1}) f'(a_l) + u a_l' f''(a_l)
            in W_l:  d_l h_{l-1}'^T + e_l h_{l-1}^T
            in h_0:  W_1^T e_1
        """
        phi, inputs, *kept = ctx.saved_tensors
        matrices = _matrices(phi, ctx.shapes)
        sums, deltas = kept[: len(matrices) - 1], kept[len(matrices) - 1 :][::-1]
        if along_rows is None:
            along_rows = inputs.new_zeros(len(inputs), 2)
        moved_hidden, moved_sums = [_with_constants(along_rows, along_entries, 0.0)], []
        values, slopes, bends = zip(*(_activation(ctx.activation, a) for a in sums), strict=True)
        for matrix, slope in zip(matrices, slopes, strict=False):
            moved_sums.append(moved_hidden[-1] @ matrix.T)
            moved_hidden.append(slope * moved_sums[-1])
        in_gradient = (moved_hidden[-1] @ matrices[-1].T).squeeze(1)

        in_phi = torch.zeros_like(phi)
        in_matrices, hidden, epsilon = _matrices(in_phi, ctx.shapes), [inputs, *values], None
        for layer in reversed(range(len(matrices))):
            torch.mm(deltas[layer].T, moved_hidden[layer], out=in_matrices[layer])
            if epsilon is not None:
                in_matrices[layer].addmm_(epsilon.T, hidden[layer])
            if layer > 0:
                back = None if epsilon is None else epsilon @ matrices[layer] * slopes[layer - 1]
                bend = bends[layer - 1]
                if bend is not None:
                    bent = (deltas[layer] @ matrices[layer]).mul_(moved_sums[layer - 1]).mul_(bend)
                    back = bent if back is None else back.add_(bent)
                epsilon = back
        in_rows = in_entries = None
        if epsilon is not None:
            in_inputs = epsilon @ matrices[0]
            in_rows, in_entries = in_inputs[:, :2], in_inputs[:, 3:] if ctx.has_entries else None
        return None, None, in_gradient, in_phi, in_rows, in_entries, None, *[None] * len(sums)


def _times_slope(name: str, factor: Tensor, a: Tensor) -> Tensor:
    if name == "leaky_relu":
        return _aten.leaky_relu_backward(factor, a, _SLOPE, False)
    return _aten.silu_backward(factor, a)


def _activation(name: str, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Value and first two derivatives; None: zero."""
    if name == "leaky_relu":
        return F.leaky_relu(a, _SLOPE), _times_slope(name, torch.ones_like(a), a), None
    share = a.sigmoid()
    rest = 1 - share
    value = a * share
    # f = a s, f' = s + f (1 - s), f'' = s (1 - s) (2 + a (1 - 2 s))
    return value, torch.addcmul(share, value, rest), share * rest * (2 + a * (rest - share))
