"""Where a module's tensors are looked up, so that others can be put there for a while; and its modes, likewise."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from torch import Tensor, nn


class Place(NamedTuple):
    """A dictionary and its key, or a list and an index."""

    holder: Any
    key: Any

    def holds(self, tensor: object) -> bool:
        """Whether it is there: a list may have become shorter, an attribute may be gone."""
        try:
            return self.holder[self.key] is tensor
        except LookupError:
            return False


class Swap(NamedTuple):
    """What was put into some places, and what was there before."""

    registered: list[tuple[Any, Any, Tensor]]
    aliases: list[tuple[Place, Tensor, Tensor]]

    def undo(self) -> None:
        for holder, key, before in self.registered:
            holder[key] = before
        for place, before, put in self.aliases:
            if place.holds(put):
                place.holder[place.key] = before


class Places:
    """Where a module and its parts find their parameters and buffers, by the tensors' names.

    A tensor has more than one *registered* place where it is tied. Its *aliases* are plain attributes of the modules,
    and lists and dictionaries in these, that hold the very same tensor: `nn.LSTM` computes from such a list. An alias
    counts for as long as it holds what the registered place does. References in closures and in other objects cannot
    be found.
    """

    def __init__(self, module: nn.Module):
        names = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        self.registered: dict[str, list[Place]] = {name: [] for name in names.values()}
        self.empty: dict[str, Place] = {}  # buffers and parameters that are None
        self._aliases: dict[str, list[Place]] = {}
        for prefix, child in module.named_modules():
            for tensors in (child._parameters, child._buffers):
                for key, tensor in tensors.items():
                    if tensor is None:
                        self.empty[f"{prefix}.{key}".lstrip(".")] = Place(tensors, key)
                    else:
                        self.registered[names[id(tensor)]].append(Place(tensors, key))
            for place, tensor in _plain_places(child):
                if id(tensor) in names:
                    self._aliases.setdefault(names[id(tensor)], []).append(place)

    def put(self, tensors: Mapping[str, Tensor]) -> Swap:
        """Puts tensors in place by name. Undo swaps in reverse order."""
        swap = Swap([], [])
        for name, tensor in tensors.items():
            places = self.registered[name]
            before = places[0].holder[places[0].key]
            for alias in self._aliases.get(name, ()):
                if alias.holds(before):
                    alias.holder[alias.key] = tensor
                    swap.aliases.append((alias, before, tensor))
            for holder, key in places:
                swap.registered.append((holder, key, holder[key]))
                holder[key] = tensor
        return swap


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps computed tensors in plain attributes, which `deepcopy` alone refuses:
    those that `torch.nn.utils.weight_norm` and pruning leave are computed anew in each forward pass."""
    computed = (tensor for part in module.modules() for _, tensor in _plain_places(part) if not tensor.is_leaf)
    return deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _plain_places(module: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """Tensors in plain attributes, and in lists, tuples and dictionaries there."""
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
                yield Place(holder, key), value
            elif isinstance(value, dict | list | tuple):
                sought.append(value)


class Modes:
    """Training and evaluation mode of a module, part by part.

    In training each part is as its owner left it: a batch norm in `.eval()` stays frozen. Of a module that is handed
    over in evaluation mode as a whole nothing of the kind is known, and all of it trains. A module's own `train()` may
    freeze parts, too. In evaluation all parts are as `eval()` puts them.
    """

    def __init__(self, module: nn.Module):
        self._parts = [vars(part) for part in module.modules()]
        own = self._now()
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
