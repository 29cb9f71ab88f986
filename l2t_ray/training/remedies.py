"""Settings under which a model can be differentiated twice that cannot be without them."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import torch


class Remedy(NamedTuple):
    """A setting of torch's, and how it is seen that it is needed.

    Attributes:
        pattern: in the message of what failed without it.
        setting: in which the model is to be called, and differentiated.
        note: what the user is told of it.
    """

    pattern: str
    setting: Callable[[], AbstractContextManager[object]]
    note: str


def _plain_attention() -> AbstractContextManager[object]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def _eager() -> AbstractContextManager[object]:
    return torch.compiler.set_stance("force_eager")


def _no_cudnn() -> AbstractContextManager[object]:
    return torch.backends.cudnn.flags(enabled=False)


def _no_mkldnn() -> AbstractContextManager[object]:
    return torch.backends.mkldnn.flags(enabled=False)


EAGER = Remedy(
    "donated buffers|torch.compile|compiled_autograd|_dynamo|aot_autograd|inductor",
    _eager,
    "is run without its torch.compile, for compiled code cannot be differentiated twice",
)
REMEDIES = (
    Remedy(
        "scaled_dot_product|_flash_attention|_efficient_attention",
        _plain_attention,
        "is run with PyTorch's plain attention (SDPBackend.MATH), for the fused kernels cannot be differentiated twice",
    ),
    EAGER,
    Remedy(
        "(?i)cudnn",
        _no_cudnn,
        "is run without cuDNN, whose recurrent layers cannot be differentiated twice",
    ),
    Remedy(
        "(?i)mkldnn",
        _no_mkldnn,
        "is run without oneDNN, some layers of which cannot be differentiated twice",
    ),
)


def remedy_for(error: BaseException | None, tried: Sequence[Remedy]) -> Remedy | None:
    """One that was not tried yet and is for such an error."""
    text = f"{type(error).__module__} {error}"
    return next((r for r in REMEDIES if r not in tried and error is not None and re.search(r.pattern, text)), None)


@contextmanager
def applied(remedies: Sequence[Remedy]) -> Iterator[None]:
    with ExitStack() as settings:
        for remedy in remedies:
            settings.enter_context(remedy.setting())
        yield
