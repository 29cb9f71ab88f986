"""Parameters as one flat vector.

Momentum, weight decay, the co-states of the hypergradient, sums over workers and checkpoints are then each one
operation on one tensor, whatever the network.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map

from l2t_ray.bilevel.draws import drawn_from, standing_draws, unmoved_draws
from l2t_ray.bilevel.places import Modes, Places
from l2t_ray.bilevel.refusals import (
    refuse_changed,
    refuse_edited,
    refuse_unfit,
    refuse_unsound,
    tensors_in,
)
from l2t_ray.bilevel.second_order import offered_operators
from l2t_ray.interfaces import UserError

_recomputes_blocks: ContextVar[bool] = ContextVar("recomputes_blocks", default=False)


@contextmanager
def recomputed_blocks() -> Iterator[None]:
    """Inside, a flat module keeps only what its blocks were given, and computes the rest again on the way back.

    The derivative is the same, for another forward pass; memory is that of one block and of the blocks' inputs. Blocks
    are the modules with a true attribute `is_recomputed`, or in a network without one the members of an
    `nn.Sequential` or `nn.ModuleList` that have several parts themselves. Buffers move as they would without.
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

    What looks weights up on the way back finds those of the call as well: whenever a call's graph is differentiated,
    for the first time or the second, they are put in place again (`_Call`).

    Args:
        autocast: in which the module's operations are computed where torch holds that to be safe; parameters and
            outputs stay in single precision. None: nothing is cast.

    Raises:
        UserError: if the module cannot be trained as one vector (`refusals.refuse_unfit`).
    """

    def __init__(self, module: nn.Module, *, autocast: torch.dtype | None = None):
        refuse_unfit(module)
        self.module, self._autocast = module, autocast
        self._places, self._modes = Places(module), Modes(module)
        self._blocks = [(block, Places(block)) for block in _blocks(module)]
        self._way_back: Callable[[], None] | None = None  # puts the template in place again after one
        trained = self._trained()
        self._names = list(trained)
        self._shapes = [p.shape for p in trained.values()]
        self._sizes = [p.numel() for p in trained.values()]
        self._frozen = {name for name, p in module.named_parameters() if not p.requires_grad}

    def __reduce__(self) -> Any:
        return partial(FlatModule, autocast=self._autocast), (self.module,)  # a copy has places of its own

    @property
    def num_parameters(self) -> int:
        return sum(self._sizes)

    def initial(self) -> Float[Tensor, " p"]:
        """A copy of the module's parameters, flattened in the order of `named_parameters`.

        Raises:
            UserError: if there are none to train.
        """
        if not self._names:
            raise UserError(
                "the model has no parameter to train: all are frozen (requires_grad=False), or there are none; "
                "leave some with requires_grad=True."
            )
        return torch.cat([p.detach().reshape(-1) for p in self._trained().values()])

    def initial_buffers(self) -> dict[str, Tensor]:
        """Copies of the module's buffers and frozen parameters."""
        return clone_buffers(self._constants())

    def views(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """`theta` split into the module's parameters by name, without a copy."""
        return self._cut(theta.split(self._sizes))

    def __call__(
        self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor], *args: Any, training: bool, **kwargs: Any
    ) -> Any:
        """The module's output at `theta`.

        Buffers move in `buffers`, a dictionary, whether the module changes them in place (batch-norm statistics) or
        assigns new ones. Afterwards the module is in the mode that it was in before.

        Raises:
            UserError: if the module edits its parameters, or gives a buffer another shape or type.
        """
        self._put_back()  # if a way back failed
        pieces = theta.split(self._sizes)
        weights = self._cut(pieces)
        is_recorded = theta.requires_grad and torch.is_grad_enabled()
        version = theta._version if is_recorded else None
        recomputed = _recomputed(self._blocks) if _recomputes_blocks.get() else nullcontext()
        operators = offered_operators() or nullcontext()
        tensors = {**weights, **buffers}
        with self._in_place(tensors, training), recomputed, operators, _cast(theta.device, self._autocast):
            try:
                output = self.module(*args, **kwargs)
            finally:  # what torch itself says of edited views would not help anybody
                if version is not None and theta._version != version:
                    refuse_edited()
            assigned = self._places.changed(tensors)
        if self._autocast is not None:
            output = tree_map(partial(_single, self._autocast), output)
        if assigned:
            self._places.clear()
            refuse_changed(assigned, weights, buffers)
            for name, tensor in assigned.items():
                buffers[name] = tensor.detach().clone()  # pyright: ignore[reportIndexIssue]
        if is_recorded:
            call = _Call({**weights, **buffers}, training)
            for name in buffers:
                if name not in self._frozen:  # what later calls change in place must not be what this graph holds
                    buffers[name] = buffers[name].clone()  # pyright: ignore[reportIndexIssue]
            self._record(call, output, pieces)
        return output

    def check(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> list[str]:
        """One training step's forward and backward pass on copies, for what would train wrongly without a word.

        Random numbers are drawn as if this had not been.

        Args:
            args, kwargs: of the module, such as a minibatch's inputs; a few examples are enough.

        Returns:
            The trained parameters that had no part in the output.

        Raises:
            UserError: if the output depends on a tensor that requires gradients and is not part of the vector, or on
                none that is; if the module edits or assigns parameters; if a buffer comes into being, or changes its
                shape or type; if a part accumulates gradients itself (reentrant checkpoints, nested `backward()`); if
                it computes with plain attributes that it changes (`plain_state`).
        """
        with unmoved_draws(theta.device), torch.enable_grad():
            return refuse_unsound(self, theta.detach(), buffers, args, kwargs)

    def load(self, theta: Float[Tensor, " p"], buffers: Mapping[str, Tensor]) -> nn.Module:
        """The module itself, given these weights: for handing a trained student out."""
        views = self.views(theta)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(views[name])
            for name, constant in self._constants().items():
                constant.copy_(buffers[name])
        return self.module

    def _cut(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: piece.view(shape) for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)}

    def _trained(self) -> dict[str, nn.Parameter]:
        self._put_back()
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def _constants(self) -> dict[str, Tensor]:
        self._put_back()
        frozen = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**dict(self.module.named_buffers()), **frozen}

    @contextmanager
    def _in_place(self, tensors: Mapping[str, Tensor], training: bool) -> Iterator[None]:
        """Inside, modules find these tensors where their own were, in this mode."""
        undo = self._put(tensors, training)
        try:
            yield
        finally:
            undo()

    def _put(self, tensors: Mapping[str, Tensor], training: bool) -> Callable[[], None]:
        mode, put_back = self._modes.put(training), self._places.put(tensors)

        def undo() -> None:
            put_back()
            self._modes.undo(mode)

        return undo

    def _record(self, call: "_Call", output: Any, pieces: Sequence[Tensor]) -> None:
        """Has the call's tensors put in place when its graph is differentiated, and when that graph is in turn.

        A way back enters the graph at the output, or, the second time, at the gradient in theta.
        """
        for tensor in tensors_in(output):
            # A weight that is handed out would hold its own graph for ever, and nothing is to be looked up before it.
            if tensor.grad_fn is not None and not any(tensor is own for own in call.tensors.values()):
                _hook_first(tensor, partial(self._go_back, call))
        seen = weakref.ref(call)  # the output's graph holds the call: the call's must not, or neither would ever go

        def follow(gradients: Sequence[Tensor | None], _: Any) -> None:
            call, gradient = seen(), gradients[0]
            if call is not None and gradient is not None and gradient.grad_fn is not None:
                gradient.grad_fn.register_prehook(partial(self._go_back, call))

        cut = pieces[0].grad_fn
        assert cut is not None
        cut.register_hook(follow)

    def _go_back(self, call: "_Call", _: Any) -> None:
        if self._way_back is None:
            Variable._execution_engine.queue_callback(self._put_back)  # pyright: ignore
        else:
            self._way_back()  # from a later call to an earlier one
        self._way_back = self._put(call.tensors, call.training)

    def _put_back(self) -> None:
        if self._way_back is not None:
            self._way_back()
            self._way_back = None


@dataclass(frozen=True)
class _Call:
    """What one call had in place, for what looks it up on the way back: checkpoints, hooks, functions with a backward
    pass of their own.

    Attributes:
        tensors: weights, as the call's own pieces of theta, so that derivatives go on through them; buffers, as the
            call left them. The caller goes on with copies: what a second forward pass does to them goes no further,
            and running statistics move once.
        training: the call's mode.
    """

    tensors: dict[str, Tensor]
    training: bool


def _hook_first(tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Registers a hook that runs before those the tensor has already: they may be a module's, and look things up."""
    tensor.register_hook(hook)
    hooks: Any = tensor._backward_hooks  # run in the order of a plain dictionary, whatever its own says
    for key in list(hooks)[:-1]:
        hooks[key] = hooks.pop(key)


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
def _recomputed(blocks: Sequence[tuple[nn.Module, Places]]) -> Iterator[None]:
    for block, places in blocks:
        block.forward = partial(_forward_again, block, places)
    try:
        yield
    finally:
        for block, _ in blocks:
            del block.forward


def _forward_again(block: nn.Module, places: Places, *args: Any, **kwargs: Any) -> Any:
    """The block's output. Its second forward pass finds the tensors that are in place now, not those of then."""
    tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    inputs = [arg for arg in args if isinstance(arg, Tensor)]
    gap = object()  # the tensors themselves would live as long as the graph, each block's input to the end of all
    frame = [gap if isinstance(arg, Tensor) else arg for arg in args]

    def run(inputs: Sequence[Tensor]) -> Any:
        given = iter(inputs)
        return type(block).forward(block, *(next(given) if arg is gap else arg for arg in frame), **kwargs)

    return _Recomputed.apply(run, places, list(tensors), *inputs, *tensors.values())


class _Recomputed(torch.autograd.Function):
    """A block that keeps its inputs alone, and gives one tensor. First derivatives only.

    `torch.utils.checkpoint` does the same for more cases, and brings torch's compiler in: 5 s of a core, 190 MiB.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[Sequence[Tensor]], Tensor], places: Places, names: list[str], *tensors: Tensor
    ) -> Tensor:
        num_inputs = len(tensors) - len(names)
        ctx.run, ctx.places, ctx.names = run, places, names
        # The caller's: views of the flat vector, and buffers, which move meanwhile and are kept as they are found.
        ctx.own = [t if t.requires_grad else t.clone() for t in tensors[num_inputs:]]
        ctx.save_for_backward(*tensors[:num_inputs])
        ctx.device = next((t.device for t in tensors if t.is_cuda), torch.device("cpu"))
        ctx.draws = standing_draws(ctx.device)
        kind = ctx.device.type
        ctx.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return run(tensors[:num_inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        own = [t.detach().requires_grad_() if t.requires_grad else t.clone() for t in ctx.own]
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]
        tensors = [*inputs, *own]
        sought = [t for t in tensors if t.requires_grad]
        put_back = ctx.places.put(dict(zip(ctx.names, own, strict=True)))
        try:
            with drawn_from(ctx.draws, ctx.device), torch.enable_grad(), _cast(ctx.device, ctx.autocast):
                output = ctx.run(inputs)
            found = iter(torch.autograd.grad(output, sought, gradient, allow_unused=True))
        finally:
            put_back()
        return None, None, None, *(next(found) if t.requires_grad else None for t in tensors)


def _cast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    # Without its cache, which would keep weights of one call for the next one.
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def _single(dtype: torch.dtype, value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == dtype else value


def clone_buffers(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}
