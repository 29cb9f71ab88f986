"""The clean examples that a loss is learned from: their minibatches, the model's error there, and its answers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.bilevel.draws import counted_draws
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.places import Places
from l2t_ray.data.counted import numpy_generator, torch_seed
from l2t_ray.data.item_examples import ItemExamples, batch_size_of, items_of
from l2t_ray.data.tensor_checks import as_inputs_and_targets
from l2t_ray.data.tensor_examples import TensorExamples
from l2t_ray.interfaces import UserError
from l2t_ray.training.explain import DryPlace, Words, explained

Answer = Callable[[nn.Module, Any], Tensor]
"""`(model, inputs) -> logits [n, c]`; inputs are a tensor, or several by name."""
_USUAL_SIZE = 100
_AT_ONCE = 500


class CleanSet:
    """Draws minibatches by number alone, each example as often as any other, and asks a model about them.

    The model is asked as it is: in its mode, with its weights. Neither its buffers nor the random numbers of the
    process move.

    Args:
        given: `(inputs, labels)`, a `Dataset` of such pairs or a `DataLoader` (`item_examples.py`).
        batch_size: None: as the loader has it, or else 100, and no more than there are examples.

    Raises:
        UserError: if it holds no inputs with class numbers, or fewer than a minibatch.
    """

    def __init__(self, model: nn.Module, given: Any, answer: Answer, *, batch_size: int | None, seed: int):
        items = items_of("validation", given)
        self._examples = (
            TensorExamples("validation", *as_inputs_and_targets("validation", given, are_labels=True))
            if items is None
            else ItemExamples(items, are_labels=True)
        )
        self._size = batch_size or batch_size_of(given) or min(_USUAL_SIZE, len(self._examples))
        if self._size > len(self._examples):
            raise UserError(
                f"validation has {len(self._examples)} examples, fewer than val_batch_size={self._size}; lower it."
            )
        self._model, self._answer, self._seed = model, answer, seed
        self._per_pass = len(self._examples) // self._size

    @property
    def labels(self) -> Int[Tensor, " n"]:
        assert isinstance(self._examples.targets, Tensor)
        return self._examples.targets

    def few(self) -> Float[Tensor, "n c"]:
        """What the model says of some examples, with the graph of its forward pass.

        Raises:
            UserError: if it fails on them.
        """
        rows = np.array(self._examples.extreme_rows)
        inputs = self._examples.batch(rows, (), self._device)[0]
        dtype = next(self._model.parameters()).dtype
        place = DryPlace("evaluated", "validation", f"val_batch_size={self._size}", inputs, dtype)
        with self._unmoved(0), explained(Words(), place):
            return self._asked(inputs)

    def rows(self, number: int) -> Int[np.ndarray, " b"]:
        """Of minibatch `number`."""
        order, within = divmod(number, self._per_pass)
        shuffled = numpy_generator(self._seed, "validation-order", order).permutation(len(self._examples))
        return shuffled[within * self._size : (within + 1) * self._size]

    def error_gradient(
        self, number: int, weights: Mapping[str, Tensor], autocast: torch.dtype | None
    ) -> tuple[float, dict[str, Tensor]]:
        """The mean cross-entropy of minibatch `number`, and its gradient by name.

        Args:
            weights: by name, in the place of the model's own.
            autocast: in which the model is asked; None: nothing is cast.
        """
        rows = self.rows(number)
        draws = self._examples.draws(numpy_generator(self._seed, "validation-items", number), self._size)
        inputs, labels = self._examples.batch(rows, draws, self._device)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with self._unmoved(number, leaves), torch.enable_grad():
            with torch.autocast(self._device.type, autocast, enabled=autocast is not None, cache_enabled=False):
                logits = self._asked(inputs)
            error = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
            gradients = torch.autograd.grad(error, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return error.item(), dict(zip(leaves, gradients, strict=True))

    @torch.no_grad()
    def answers(self) -> Float[Tensor, "n c"]:
        """What the model says of all examples, in order."""
        starts = [*range(0, len(self._examples), _AT_ONCE), len(self._examples)]
        batches = [np.arange(start, end) for start, end in pairwise(starts)]
        with self._unmoved(0):
            return torch.cat([self._asked(self._examples.batch(rows, (), self._device)[0]).float() for rows in batches])

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _asked(self, inputs: Any) -> Tensor:
        logits = self._answer(self._model, inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            got = f"the shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(
                f"the model must give logits [n, c] for a minibatch of validation, got {got}; give answer=, a function "
                "of model and inputs that gives them."
            )
        return logits

    @contextmanager
    def _unmoved(self, number: int, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        seed = torch_seed(self._seed, "validation-draws", number)
        buffers = clone_buffers(dict(self._model.named_buffers()))
        undo = Places(self._model).put({**buffers, **(weights or {})})
        try:
            with counted_draws(seed, self._device):
                yield
        finally:
            undo()
