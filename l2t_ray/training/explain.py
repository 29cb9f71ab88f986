"""From what went wrong in a model to one sentence: what was expected, what came, what to do."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2t_ray.data.tensor_checks import by_name
from l2t_ray.interfaces import UserError
from l2t_ray.training.user_module import first_line


class Words(NamedTuple):
    """What the caller calls the things that can be wrong."""

    model: str = "model"
    train: str = "train"
    validation: str = "validation"
    batch_size: str = "batch_size"
    """The setting with its value, as in `batch_size=25`."""
    val_batch_size: str = "val_batch_size"
    otherwise: str = ""
    """What else can be done about a missing second derivative, in the caller's settings."""
    is_own: bool = True
    """The caller brought the model: whatever it raises is theirs to mend, not a fault of ours."""


class DryPlace(NamedTuple):
    """Where in a dry round something went wrong."""

    doing: str
    """What was tried, as in `cannot be ...`."""
    data: str
    size_key: str
    inputs: Any
    """A tensor, or several by name."""
    dtype: torch.dtype
    """Of the model's parameters."""

    @property
    def batch(self) -> str:
        shown = (f"{list(values.shape)} of {_short(values.dtype)}" for values in by_name(self.inputs).values())
        return f"{' and '.join(shown)} from {self.data}"

    @property
    def first(self) -> Tensor:
        """Of the inputs, the first one."""
        return next(iter(by_name(self.inputs).values()))


@contextmanager
def explained(words: Words, place: DryPlace) -> Iterator[None]:
    """Inside, what the model raises becomes a `UserError`, with the cause behind it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.filename is None and words.is_own:  # the model's own
            raise UserError(_sentence(words, place, error) or str(error)) from error
        raise UserError(
            f"a file cannot be written or read ({error.filename or 'temporary'}: {error.strerror}); free space, or set "
            "TMPDIR to another place."
        ) from error
    except Exception as error:
        sentence = _sentence(words, place, error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


@contextmanager
def task_tried(task: Any) -> Iterator[None]:
    """Inside, what a task raises of a model's first outputs, and of the targets, becomes a `UserError`."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"task {type(task).__name__} cannot read the model's outputs and the targets of validation: "
            f"{type(error).__name__}: {first_line(error)}; give those that it is for, or mend it."
        ) from error


def check_outputs(outputs: Any, words: Words, place: DryPlace) -> None:
    """Holds a model's answer to a batch against what a classifier gives.

    Raises:
        UserError: if these are no logits, one row an example.
    """
    n = len(place.first)
    if not isinstance(outputs, Tensor):
        raise UserError(
            f"{words.model} gives a {type(outputs).__name__} where logits [n, classes] are expected; wrap it in a "
            f"module whose forward returns {_logits_of(outputs)} alone."
        )
    if outputs.ndim != 2 or len(outputs) != n:
        raise UserError(
            f"{words.model} gives outputs of shape {list(outputs.shape)} for {n} inputs where logits [{n}, classes] "
            f"are expected; {_reshaped(outputs, n)}."
        )
    if not outputs.is_floating_point():
        raise UserError(
            f"{words.model} gives {_short(outputs.dtype)} where logits are expected; return scores, not classes."
        )
    if outputs.shape[1] < 2:
        raise UserError(f"{words.model} gives one output an example; give it one for each class, two for yes and no.")
    num_bad = int((~outputs.isfinite().all(dim=1)).sum())
    if num_bad:
        raise UserError(
            f"{words.model} gives outputs that are not finite for {num_bad} of {n} examples of {place.data}, though "
            "its inputs are; look at its weights, and for a logarithm, a root or a division of zeros."
        )


def check_finite(values: Tensor, what: str, words: Words, place: DryPlace) -> None:
    """
    Raises:
        UserError: if the derivative of the model that `values` are is not finite.
    """
    num_bad = int((~values.isfinite()).sum())
    if num_bad:
        raise UserError(
            f"the {what} of {words.model} is not finite ({num_bad} of {values.numel()} entries) on examples of "
            f"{place.data}, though its outputs are: a norm, a root or a division of zeros, as in F.normalize of an "
            "all-zero input, has none; write x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for it, or leave "
            "such examples out."
        )


def _sentence(words: Words, place: DryPlace, error: Exception) -> str | None:
    text = f"{type(error).__name__}: {first_line(error)}"
    for pattern, explain in _CAUSES:
        found = re.search(pattern, text)
        if found and (sentence := explain(words, place, found)):
            return sentence
    return (
        f"{words.model} cannot be {place.doing} with inputs {place.batch}: {text}; call it on such inputs to see where."
    )


def _no_derivative(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    operation = re.sub(r"^_+|_backward$|_for_cpu", "", next((group for group in found.groups() if group), ""))
    what = f"uses {operation}, which" if operation else "has a step that"
    cure = next((cure for name, cure in _CURES.items() if name in operation), "write it with operations that can be")
    return f"{words.model} {what} cannot be differentiated twice, and learning the loss needs that; {cure}."


def _several_inputs(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    reason = found[0].removeprefix("TypeError: ")
    if isinstance(place.inputs, Mapping):
        return (
            f"{words.model} is called with the inputs of {place.data} by name ({', '.join(place.inputs)}), and its "
            f"forward has other ones ({reason}); name them as its arguments are."
        )
    return (
        f"{words.model} is called with one tensor, the inputs of {place.data}, and its forward needs more ({reason}); "
        "give the inputs by name, {argument: tensor, ...}."
    )


def _batch_of_one(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    return (
        f"{place.size_key} gives a batch norm of {words.model} a single value a channel in training; give it two "
        "examples or more, or use a group norm."
    )


def _devices(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    return (
        f"{words.model} mixes devices on inputs {place.batch}: {found[0]}; make tensors that it keeps buffers "
        "(register_buffer), and new ones with device=inputs.device."
    )


def _dtypes(words: Words, place: DryPlace, found: re.Match[str]) -> str | None:
    given, own = _short(place.first.dtype), _short(place.dtype)
    if given == own:
        if place.first.device.type == "cpu" and place.dtype == torch.float16:
            return f"{words.model} is float16, which the CPU lacks operations for ({found[0]}); try .float()."
        return None
    if place.first.is_floating_point():
        return (
            f"inputs of {place.data} are {given} and parameters of {words.model} are {own}; give all "
            f"inputs this type, as with inputs.to(torch.{own}){_in_numpy(own)}."
        )
    return (
        f"inputs of {place.data} are {given} and parameters of {words.model} are {own}; give inputs.to(torch.{own}), "
        "and pixels scaled to about -1 to 1, or an embedding as its first layer."
    )


def _in_numpy(dtype: str) -> str:
    return "" if dtype == "bfloat16" else f", in NumPy inputs.astype('{dtype}')"


def _independent(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    return (
        f"outputs of {words.model} do not depend on its trainable parameters; look for detach(), torch.no_grad(), "
        ".data or .item() in its forward, and for weights kept outside of nn.Parameter."
    )


def _memory(words: Words, place: DryPlace, found: re.Match[str]) -> str:
    return f"{words.model} needs more memory than there is for inputs {place.batch}; lower {place.size_key}."


_Explain = Callable[[Words, DryPlace, re.Match[str]], str | None]
_CAUSES: tuple[tuple[str, _Explain], ...] = (
    (r"derivative for '?(?:aten::)?(\w+)'? is not implemented", _no_derivative),
    (r"Double backwards? is not supported|not currently support double backward|once_differentiable", _no_derivative),
    (r"donated buffers", _no_derivative),
    (r"TypeError: .*missing \d+ required .*|TypeError: .*unexpected keyword .*", _several_inputs),
    (r"Expected more than 1 (?:value per channel|spatial element)", _batch_of_one),
    (r"[^.]*(?:same device|on device|device type|CPUTensorId)[^.]*", _devices),
    (r"OutOfMemory|out of memory|can't allocate memory|MemoryError", _memory),
    (r"does not require grad|appears to not have been used", _independent),
    (r"[^.]*(?:dtype|scalar type|not implemented for|should be the same|tensor for argument)[^.]*", _dtypes),
)
_CURES = {
    "embedding_bag": "use nn.Embedding, and the sum or mean of what it gives",
    "rnn": "use a recurrent layer without a fused kernel",
}


def _logits_of(outputs: Any) -> str:
    if hasattr(outputs, "logits") or (isinstance(outputs, dict) and "logits" in outputs):
        return "outputs.logits" if hasattr(outputs, "logits") else 'outputs["logits"]'
    if isinstance(outputs, tuple | list):
        return "outputs[0], or whichever of them are the logits,"
    if isinstance(outputs, dict):
        return f"the logits among {', '.join(map(repr, list(outputs)[:5]))}"
    return "the logits"


def _reshaped(outputs: Tensor, n: int) -> str:
    if outputs.ndim == 1:
        return "return one score for each class, two for yes and no"
    if outputs.ndim == 2:
        return "its forward must keep the first dimension, one row an input"
    return "average or flatten what is left of positions, such as outputs.flatten(2).mean(2)"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
