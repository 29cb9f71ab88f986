"""Autograd's graph, looked at: which function cuts a derivative or makes it infinite, and where a model calls it."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROOT = Path(__file__).parents[1]
_OURS = ("bilevel", "core", "parallel", "tasks", "methods", "training")
_NOT_THE_MODEL = (
    Path(torch.__file__).parent,
    *(_ROOT / part for part in _OURS),
)
_CALLERS = (_ROOT / "bilevel/unroll.py", _ROOT / "bilevel/derivative_trial.py")
"""What calls the model is further out in a traceback than these."""

_OPERATORS = (_ROOT / "bilevel/second_order.py", _ROOT / "bilevel/double.py")
"""What stands between the model and PyTorch."""

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>.*)')


class Site(NamedTuple):
    """A function in a model, and the line of the model that calls it, where that is known."""

    function: str
    line: str | None = None

    def __str__(self) -> str:
        return self.function if self.line is None else f"{self.function} ({self.line})"


def graph_nodes(*tensors: Tensor) -> Iterator[Any]:
    """The nodes of the graph that the tensors are the ends of, each once."""
    waiting, seen = [tensor.grad_fn for tensor in tensors], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


class Cuts:
    """Nodes of a graph whose backward pass gave a gradient that has no derivative, though it depends on something.

    A gradient that enters a backward pass and can itself be differentiated must leave it so: a backward pass is linear
    in it. (Where zeros leave it, as of `sign`, there is nothing to differentiate.) That a backward pass is cut off from
    the function's own inputs cannot be seen so; it takes a finite difference.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.hooked: list[Any] = []
        """Nodes before which a hook of the model's, on a tensor, cut the gradient."""
        self._differentiable: set[tuple[Any, int]] = set()
        self._handles: list[Any] = []

    def sites(self) -> list[str]:
        """What cuts, for a user."""
        hooks = [f"a hook on what {site_of(node)} gives" for node in self.hooked]
        return list(dict.fromkeys([*(str(site_of(node)) for node in self.nodes), *hooks]))

    def watch(self, nodes: Iterable[Any]) -> None:
        """Looks at these nodes of a loss in its next backward pass, which is to make a graph of itself."""
        self._handles += [node.register_hook(self._hook(node)) for node in nodes]

    def __enter__(self) -> "Cuts":
        return self

    def __exit__(self, *_: object) -> None:
        """Looks no more. A node that holds a hook that holds the node would keep its graph in memory for ever."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._differentiable.clear()

    def _hook(self, node: Any) -> Callable[..., None]:
        def look(leaving: Sequence[Tensor | None], entering: Sequence[Tensor | None]) -> None:
            if not torch.is_grad_enabled():  # a later pass, which makes no graph: that of the second derivative
                return
            has_graph = [g is not None and g.requires_grad for g in entering]
            if any(
                (node, number) in self._differentiable and g is not None and not has and bool(g.any())
                for number, (g, has) in enumerate(zip(entering, has_graph, strict=True))
            ):
                self.hooked.append(node)
            if any(has_graph) and any(map(_is_cut, leaving)):
                self.nodes.append(node)
            for (following, number), g in zip(node.next_functions, leaving, strict=False):
                if g is not None and g.requires_grad:
                    self._differentiable.add((following, number))

        return look


def _is_cut(gradient: Tensor | None) -> bool:
    if gradient is None:
        return False
    if not gradient.requires_grad:
        return bool(gradient.any())
    # what `once_differentiable` leaves behind: it raises where it is reached, and leads nowhere
    return gradient.grad_fn is not None and gradient.grad_fn.name() == "torch::autograd::Error"


def own_functions(loss: Tensor) -> list[Any]:
    """Nodes of functions that bring a backward pass of their own, neither PyTorch's nor this package's."""
    return [node for node in graph_nodes(loss) if _is_own(node)]


def _is_own(node: Any) -> bool:
    forward = getattr(node, "_forward_cls", None)
    if forward is not None:
        is_registered = forward.__name__.startswith(_REGISTERED)
        return is_registered or not forward.__module__.startswith(("torch.", "l2t_ray."))
    return "CppNode<" in node.name()


_REGISTERED = "GeneratedBackwardFor_"  # what torch.library makes for an operator


@contextmanager
def traced() -> Iterator[list[str]]:
    """Inside, nodes remember where they were made, and what PyTorch says of a backward pass that fails is kept."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True, check_nan=False):
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            said.extend(str(warning.message) for warning in caught)


def site_of(node: Any) -> Site:
    """The function whose derivative a node is. Its line is known where the node was made inside `traced`."""
    node = node.metadata.get("parent_", node)  # of a node in the graph of a gradient: the one that it derives from
    return Site(_function(node), _line("".join(node.metadata.get("traceback_", []))))


def site_of_failure(said: Sequence[str]) -> Site | None:
    """From what `traced` kept: the function whose derivative failed; None: that is not known."""
    for text in reversed(said):
        name = re.search(r"(?:Error detected in|was induced by) ([\w:]+?)(?:Backward)?\d*\. Traceback", text)
        if name is not None and not name[1].startswith("torch::"):
            registered = name[1].startswith(_REGISTERED)
            return Site(_registered(name[1]) if registered else _snake(name[1]), _line(text))
    return None


def first_not_finite(tensor: Tensor, leaves: Sequence[Tensor], along: Tensor | None = None) -> Site | None:
    """The function that is the first to turn finite gradients into others on the way from the tensor to the leaves."""
    found: list[Any] = []

    def look(node: Any) -> Callable[..., None]:
        def at(leaving: Sequence[Tensor | None], entering: Sequence[Tensor | None]) -> None:
            if not found and _are_finite(entering) and not _are_finite(leaving):
                found.append(node)

        return at

    handles = [node.register_hook(look(node)) for node in graph_nodes(tensor)]
    torch.autograd.grad(tensor, leaves, along, allow_unused=True)
    for handle in handles:  # a node that holds a hook that holds the node would stay in memory for ever
        handle.remove()
    return site_of(found[0]) if found else None


def _are_finite(tensors: Sequence[Tensor | None]) -> bool:
    return all(t is None or bool(t.isfinite().all()) for t in tensors)


def _function(node: Any) -> str:
    forward = getattr(node, "_forward_cls", None)
    if forward is not None:
        if forward.__name__.startswith(_REGISTERED):
            return _registered(forward.__name__)
        return f"{forward.__module__}.{forward.__qualname__}".removeprefix("__main__.")
    inner = re.search(r"CppNode<(.+)>", node.name())
    return inner[1] if inner else _snake(re.sub(r"Backward\d*$", "", node.name()))


def _registered(name: str) -> str:
    return name.removeprefix(_REGISTERED).removesuffix("_default")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _line(trace: str) -> str | None:
    """The innermost line of the model's own code in a traceback's text; None: it is all PyTorch's."""
    frames = list(_FRAME.finditer(trace))
    calls = [number for number, frame in enumerate(frames) if Path(frame["file"]) in _CALLERS]
    within = frames[calls[-1] + 1 if calls else 0 :]
    for frame in reversed(list(takewhile(lambda frame: Path(frame["file"]) not in _OPERATORS, within))):
        file = Path(frame["file"])
        if not any(file.is_relative_to(folder) for folder in _NOT_THE_MODEL):
            return f"{file.name}:{frame['line']}: {shorten(frame['code'].strip(), 80, placeholder=' ...')}"
    return None


_REMEDIES = (
    (r"compile|donated|aot", "give the model itself, not what torch.compile made of it"),
    (r"dot_product|attention", "call it under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"),
    (r"embedding_bag", "use torch.nn.Embedding and the mean over its rows"),
    (r"cudnn_rnn", "call it under torch.backends.cudnn.flags(enabled=False)"),
)
_REMEDY = "write its backward pass with PyTorch's operations, without NumPy, detach() or once_differentiable"


def missing_derivative(sites: str, reason: str = "", otherwise: str = "") -> str:
    """The sentence for a user about a second derivative that is not there."""
    remedy = next((cure for pattern, cure in _REMEDIES if re.search(pattern, f"{sites} {reason}", re.I)), _REMEDY)
    return (
        f"a second derivative is missing, and a hypergradient needs it: that of {sites}"
        + (f" ({reason})" if reason else "")
        + f"; {remedy}"
        + (f", or {otherwise}" if otherwise else "")
        + "."
    )
