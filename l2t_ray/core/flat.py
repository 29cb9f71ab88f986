"""Parameters as one flat vector.

Momentum, weight decay, the co-states of the hypergradient, sums over workers and checkpoints are then each one
operation on one tensor, whatever the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2t_ray.core.second_order import offered_operators

_recomputes_blocks: ContextVar[bool] = ContextVar("recomputes_blocks", default=False)


@contextmanager
def recomputed_blocks() -> Iterator[None]:
    """Inside, a flat module keeps only what its blocks were given, and computes the rest again on the way back.

    The derivative is the same, for another forward pass; memory is that of one block and of the blocks' inputs. Blocks
    are the modules with a true attribute `is_recomputed`, or in a network without one the members of an
    `nn.Sequential` or `nn.ModuleList` that have several parts themselves. Running statistics move twice: call with a
    copy of the buffers.
    """
    token = _recomputes_blocks.set(True)
    try:
        yield
    finally:
        _recomputes_blocks.reset(token)


class FlatModule:
    """Calls a module with its parameters taken from a flat vector and its buffers from a mapping.

    The module's own parameters are only a template and are never changed. Frozen ones (`requires_grad=False`) are no
    part of the vector; they travel with the buffers. Not for two threads at once: a call puts the vector's pieces in
    the module's place while it lasts, as `torch.func.functional_call` does, but without looking the places up again
    each time: for a small student that search costs as much as its convolutions. The module's structure must
    therefore stay as it is here.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._places, self._blocks = _places(module), _blocks(module)
        trained = self._trained()
        self._names = list(trained)
        self._shapes = [p.shape for p in trained.values()]
        self._sizes = [p.numel() for p in trained.values()]

    @property
    def num_parameters(self) -> int:
        return sum(self._sizes)

    def initial(self) -> Float[Tensor, " p"]:
        """A copy of the module's parameters, flattened in the order of `named_parameters`."""
        return torch.cat([p.detach().reshape(-1) for p in self._trained().values()])

    def initial_buffers(self) -> dict[str, Tensor]:
        """Copies of the module's buffers and frozen parameters."""
        return clone_buffers(self._constants())

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
        recomputed = _recomputed(self._blocks) if _recomputes_blocks.get() else nullcontext()
        operators = offered_operators() or nullcontext()
        with _in_place(self._places, {**self.views(theta), **buffers}), recomputed, operators:
            return self.module(*args, **kwargs)

    def load(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> nn.Module:
        """The module itself, given these weights: for handing a trained student out."""
        views = self.views(theta)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(views[name])
            for name, constant in self._constants().items():
                constant.copy_(buffers[name])
        return self.module

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def _constants(self) -> dict[str, Tensor]:
        frozen = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**dict(self.module.named_buffers()), **frozen}


_Places = dict[str, list[tuple[dict[str, Any], str]]]
"""By a tensor's name, the dictionaries and keys in which modules look it up: more than one where weights are tied."""


def _places(module: nn.Module) -> _Places:
    names = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    places: _Places = {name: [] for name in names.values()}
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    places[names[id(tensor)]].append((tensors, key))
    return places


@contextmanager
def _in_place(places: _Places, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, modules find these tensors where their own were."""
    originals = [(holder, key, holder[key]) for name in tensors for holder, key in places[name]]
    try:
        for name, tensor in tensors.items():
            for holder, key in places[name]:
                holder[key] = tensor
        yield
    finally:
        for holder, key, original in originals:
            holder[key] = original


def _blocks(module: nn.Module) -> list[nn.Module]:
    marked = [child for child in module.modules() if getattr(child, "is_recomputed", False)]
    return marked or list(_parts_of_sequences(module))


def _parts_of_sequences(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(list(child.children())) > 1:
            yield child
        else:
            yield from _parts_of_sequences(child)


@contextmanager
def _recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    for block in blocks:
        block.forward = partial(_forward_again, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _forward_again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The block's output. Its second forward pass finds the tensors that are in place now, not those of then."""
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    inputs = [arg for arg in args if isinstance(arg, Tensor)]
    gap = object()  # the tensors themselves would live as long as the graph, each block's input to the end of all
    frame = [gap if isinstance(arg, Tensor) else arg for arg in args]

    def run(inputs: Sequence[Tensor]) -> Any:
        given = iter(inputs)
        return type(block).forward(block, *(next(given) if arg is gap else arg for arg in frame), **kwargs)

    return _Recomputed.apply(run, _places(block), list(tensors), *inputs, *tensors.values())


class _Recomputed(torch.autograd.Function):
    """A block that keeps its inputs alone, and gives one tensor. First derivatives only.

    `torch.utils.checkpoint` does the same for more cases, and brings torch's compiler in: 5 s of a core, 190 MiB.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[Sequence[Tensor]], Tensor], places: _Places, names: list[str], *tensors: Tensor
    ) -> Tensor:
        num_inputs = len(tensors) - len(names)
        ctx.run, ctx.places, ctx.names = run, places, names
        ctx.own = tensors[num_inputs:]  # the caller's: views of the flat vector, and buffers, which move meanwhile
        ctx.save_for_backward(*tensors[:num_inputs])
        ctx.devices = sorted({t.get_device() for t in tensors if t.is_cuda})
        ctx.random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in ctx.devices]
        return run(tensors[:num_inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        tensors = [t.detach().requires_grad_(t.requires_grad) for t in (*ctx.saved_tensors, *ctx.own)]
        inputs, own = tensors[: len(ctx.saved_tensors)], tensors[len(ctx.saved_tensors) :]
        with torch.random.fork_rng(ctx.devices), torch.enable_grad():
            torch.set_rng_state(ctx.random[0])
            for device, state in zip(ctx.devices, ctx.random[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            with _in_place(ctx.places, dict(zip(ctx.names, own, strict=True))):
                output = ctx.run(inputs)
        sought = [t for t in tensors if t.requires_grad]
        found = iter(torch.autograd.grad(output, sought, gradient, allow_unused=True))
        return None, None, None, *(next(found) if t.requires_grad else None for t in tensors)


def clone_buffers(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}
