"""Settings of torch's under which a model can be differentiated twice, around the calls of somebody else's loop."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from l2t_ray.training.remedies import Remedy, applied


class ModelSettings:
    """Puts the settings in place whenever a part of the model is called, from `enter` to `leave`.

    Every part, since loops call parts as well as the whole. The user's own settings are back after each call.
    """

    def __init__(self, model: nn.Module, remedies: Sequence[Remedy]):
        self._model, self._remedies = model, remedies
        self._handles: list[Any] = []
        self._entered: list[ExitStack] = []

    def enter(self) -> None:
        if self._handles or not self._remedies:
            return
        for part in self._model.modules():
            self._handles.append(part.register_forward_pre_hook(self._before))
            self._handles.append(part.register_forward_hook(self._after, always_call=True))

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, *_: object) -> None:
        settings = ExitStack()
        settings.enter_context(applied(self._remedies))
        self._entered.append(settings)

    def _after(self, *_: object) -> None:
        self._entered.pop().close()
