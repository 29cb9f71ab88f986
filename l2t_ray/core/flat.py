"""Parameters as one flat vector.

Momentum, weight decay, the co-states of the hypergradient, sums over workers and checkpoints are then each one
operation on one tensor, whatever the network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call


class FlatModule:
    """Calls a module with its parameters taken from a flat vector and its buffers from a mapping.

    The module's own parameters are only a template and are never changed. Not for two threads at once: a call puts
    the vector's pieces in the module's place while it lasts.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        named = dict(module.named_parameters())
        self._names = list(named)
        self._shapes = [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]

    @property
    def num_parameters(self) -> int:
        return sum(self._sizes)

    def initial(self) -> Float[Tensor, " p"]:
        """A copy of the module's parameters, flattened in the order of `named_parameters`."""
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])

    def initial_buffers(self) -> dict[str, Tensor]:
        return clone_buffers(dict(self.module.named_buffers()))

    def views(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """`theta` cut into the module's parameters by name, without a copy."""
        pieces = theta.split(self._sizes)
        return {name: piece.view(shape) for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)}

    def __call__(
        self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor], *args: Any, training: bool, **kwargs: Any
    ) -> Any:
        """The module's output at `theta`. In training, batch-norm statistics in `buffers` are updated in place."""
        if self.module.training != training:
            self.module.train(training)
        return functional_call(self.module, {**self.views(theta), **buffers}, args, kwargs)

    def load(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> nn.Module:
        """The module itself, given these weights: for handing a trained student out."""
        views = self.views(theta)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(views[name])
            for name, buffer in self.module.named_buffers():
                buffer.copy_(buffers[name])
        return self.module


def clone_buffers(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}
