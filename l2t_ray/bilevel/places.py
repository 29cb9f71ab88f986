"""Where a module's tensors are looked up, so that others can be put there for a while; and its modes, likewise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from l2t_ray.interfaces import UserError


class Place(NamedTuple):
    """Where a tensor is looked up: a dictionary and its key, or a list and an index."""

    name: str
    holder: Any
    key: Any

    def holds(self, tensor: object) -> bool:
        """Whether it is there: a list may have become shorter, an attribute may be gone."""
        try:
            return self.holder[self.key] is tensor
        except LookupError:
            return False


class Places:
    """Where a module and its parts find their parameters and buffers, by the tensors' names.

    A tensor has more than one *registered* place where it is tied. Its *aliases* are plain attributes of the modules,
    and lists and dictionaries in these, that hold the very same tensor: `nn.LSTM` computes from such a list. An alias
    counts for as long as it holds what the registered place does. References in closures and in other objects cannot
    be found.
    """

    def __init__(self, module: nn.Module):
        names = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        self._registered: list[Place] = []
        self._empty: list[Place] = []  # None as yet
        self._aliases: list[tuple[Place, Place]] = []  # each with a registered place of the same tensor
        for prefix, child in module.named_modules():
            for tensors in (child._parameters, child._buffers):
                for key, tensor in tensors.items():
                    if tensor is None:
                        self._empty.append(Place(f"{prefix}.{key}".lstrip("."), tensors, key))
                    else:
                        self._registered.append(Place(names[id(tensor)], tensors, key))
        self._names = {place.name for place in self._registered}
        first = {place.name: place for place in reversed(self._registered)}
        for child in module.modules():
            for holder, key, tensor in _plain_attributes(child):
                if id(tensor) in names:
                    name = names[id(tensor)]
                    self._aliases.append((Place(name, holder, key), first[name]))

    def put(self, tensors: Mapping[str, Tensor]) -> Callable[[], None]:
        """Puts tensors in place by name; what is called to undo it comes back. To be undone in reverse order."""
        registered = self._registered
        if not self._names <= tensors.keys():
            registered = [place for place in registered if place.name in tensors]
        aliases = [
            (alias, place.holder[place.key])
            for alias, place in self._aliases
            if alias.name in tensors and alias.holds(place.holder[place.key])
        ]
        before = [holder[key] for _, holder, key in registered]
        for name, holder, key in registered:
            holder[key] = tensors[name]
        for alias, _ in aliases:
            alias.holder[alias.key] = tensors[alias.name]

        def undo() -> None:
            for (_, holder, key), tensor in zip(registered, before, strict=True):
                holder[key] = tensor
            for alias, tensor in aliases:
                if alias.holds(tensors[alias.name]):
                    alias.holder[alias.key] = tensor

        return undo

    def changed(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is in registered places now, by name, where it is neither these tensors nor None as at first."""
        changed = {
            name: holder.get(key)
            for name, holder, key in self._registered
            if name in tensors and holder.get(key) is not tensors[name]
        }
        return changed | {name: holder[key] for name, holder, key in self._empty if holder.get(key) is not None}

    def clear(self) -> None:
        """Makes None again what was None at first."""
        for _, holder, key in self._empty:
            holder[key] = None


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _plain_attributes(module: nn.Module) -> Iterator[tuple[Any, Any, Tensor]]:
    """Holder, key and tensor, of plain attributes and of lists, tuples and dictionaries there."""
    seen: set[int] = set()
    sought: list[Any] = [vars(module)]
    while sought:
        holder = sought.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in items:
            if holder is vars(module) and key in _REGISTRIES:
                continue
            if isinstance(value, Tensor) and not isinstance(holder, tuple):
                yield holder, key, value
            elif isinstance(value, dict | list | tuple):
                sought.append(value)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Refuses a module whose weights change inside: afterwards they are what they were before.

    Raises:
        UserError: naming the part whose own `train()` does more than set the mode (as one that merges an adapter does).
    """
    own = [part for part in module.modules() if type(part).train is not nn.Module.train]
    before = [(t, t.detach().clone()) for part in own for t in (*part.parameters(), *part.buffers())]
    yield
    changed = [tensor for tensor, value in before if not torch.equal(tensor.detach(), value)]
    with torch.no_grad():
        for tensor, value in before:
            tensor.copy_(value)
    if changed:
        raise UserError(
            f"train() or eval() of the model's {type(own[0]).__name__} changes its weights, as merging adapters does; "
            "switch that off, for the mode is switched for each evaluation without calling them."
        )


class Modes:
    """Training and evaluation mode of a module, part by part.

    In training each part is as its owner left it: a batch norm in `.eval()` stays frozen. Of a module that is handed
    over in evaluation mode as a whole nothing of the kind is known, and all of it trains. A module's own `train()` may
    freeze parts, too. In evaluation all parts are as `eval()` puts them.
    """

    def __init__(self, module: nn.Module):
        self._parts = [vars(part) for part in module.modules()]
        own = self._now()
        with _unchanged(module):
            module.train()
            training = self._now()
            module.eval()
        self._wanted = {
            False: self._now(),
            True: [new and old for new, old in zip(training, own, strict=True)] if own[0] else training,
        }
        self._set(own)

    def put(self, training: bool) -> Sequence[bool] | None:
        """Sets the mode and gives what was before, for `undo`; None where nothing changes."""
        now, wanted = self._now(), self._wanted[training]
        if now == wanted:
            return None
        self._set(wanted)
        return now

    def undo(self, before: Sequence[bool] | None) -> None:
        if before is not None:
            self._set(before)

    def _now(self) -> list[bool]:
        return [part["training"] for part in self._parts]

    def _set(self, modes: Sequence[bool]) -> None:
        for part, mode in zip(self._parts, modes, strict=True):
            part["training"] = mode
