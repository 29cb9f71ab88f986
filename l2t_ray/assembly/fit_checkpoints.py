"""Where a `fit` keeps what it has done, so that the same call goes on with it bit for bit."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from l2t_ray.assembly import identity
from l2t_ray.assembly.fit_parts import FitParts
from l2t_ray.data.tensor_checks import checksum_of
from l2t_ray.files import replaced, write_whole
from l2t_ray.interfaces import UserError
from l2t_ray.training.checkpoint import FINGERPRINT, Checkpoint, CheckpointStore
from l2t_ray.training.fingerprint import Fingerprint, difference
from l2t_ray.training.place import CHECKPOINTS, RunPlace, taken

FIRST_WEIGHTS = "first_weights.pt"
_OF_A_JOB = ("data.", "student.", "controls")
_WEIGHTS = "model's weights at the beginning"


@dataclass
class FitCheckpoints:
    """Checkpoints in a directory that this process holds.

    Attributes:
        every: so many rounds is there to be one.
        saved: rounds in the newest one.
    """

    place: RunPlace
    make_store: Callable[[], CheckpointStore]
    every: int
    saved: int = 0

    def __post_init__(self):
        self._store = self.make_store()

    def latest(self) -> Checkpoint | None:
        found = self._store.latest()
        self.place.has_begun = found is not None
        self.saved = 0 if found is None else found.round
        return found

    def is_due(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.round % self.every == 0

    def save(self, checkpoint: Checkpoint, aside: dict[str, Any]) -> None:
        """
        Raises:
            UserError: if the directory cannot be written to.
        """
        if checkpoint.round > self.saved:
            self.place.has_begun = True
            try:
                self._store.save(replace(checkpoint, aside=aside))
            except BaseException:  # Ctrl-C too: what was half written is not what the next one may build on
                self._store = self.make_store()
                raise
            self.saved = checkpoint.round


@contextmanager
def checkpoints_in(directory: str | Path | None, parts: FitParts, *, every: int) -> Iterator[FitCheckpoints | None]:
    """The checkpoints of this fit, while nobody else has them; None: none are kept.

    Raises:
        UserError: if another process has the directory, it cannot be written to, or it holds what another call, or
            something else than `fit`, has computed.
    """
    if directory is None:
        yield None
        return
    place = Path(directory).expanduser().resolve()
    with taken(place, is_new=False, another="another checkpoint=") as held:
        fingerprint = fingerprint_of(parts)
        _check_same(place, fingerprint)
        try:
            write_whole(place / FINGERPRINT, json.dumps(fingerprint, indent=1))
            with replaced(place / FIRST_WEIGHTS) as path:
                torch.save(parts.student.state_dict(), path)
        except OSError as error:
            raise UserError(f"cannot write to {place}: {error.strerror}; set another checkpoint=.") from None
        make_store = partial(
            CheckpointStore,
            place / CHECKPOINTS,
            config=identity.shown_yaml(parts.config),
            fingerprint=fingerprint,
            another="another checkpoint=",
        )
        yield FitCheckpoints(held, make_store, every)


def fingerprint_of(parts: FitParts) -> Fingerprint:
    """What is computed: the settings, checksums of the sets and of the model at its beginning."""
    settings = {key: value for key, value in identity.settings(parts.config).items() if not key.startswith(_OF_A_JOB)}
    settings["model"] = type(parts.student).__qualname__
    settings["precision"] = str(parts.autocast or "as the model has it")
    settings["task"] = "classification" if parts.task is None else _shown(parts.task)
    sets = parts.sets
    data = {
        "training examples": sets.train.checksum(),
        "validation examples": sets.validation.checksum(),
        "model's layers": hashlib.sha256(_plain(repr(parts.student)).encode()).hexdigest(),
        _WEIGHTS: checksum_of([parts.student.state_dict()]),
    }
    if sets.test is not sets.validation:
        data["test examples"] = sets.test.checksum()
    if parts.loss is not None:
        settings["loss"] = type(parts.loss).__qualname__
        data["loss's weights at the beginning"] = checksum_of([parts.loss.phi])
    return {"settings": settings, "data": data, "code": {"torch": torch.__version__}}


def _check_same(place: Path, own: Fingerprint) -> None:
    try:
        found = json.loads((place / FINGERPRINT).read_text())
    except (OSError, ValueError):
        return  # the checkpoints have it too, if there are any
    problem = difference(found, own)
    if problem is None:
        return
    remedy = ""
    if _WEIGHTS in problem:
        path = place / FIRST_WEIGHTS
        remedy = f", or begin with those there: model.load_state_dict(torch.load({str(path)!r}))"
    raise UserError(
        f"checkpoint={str(place)!r} holds what another call has computed: {problem}; set another checkpoint=, remove "
        f"that directory{remedy}."
    )


def _shown(task: Any) -> str:
    return _plain(f"{type(task).__qualname__} {vars(task)}")


def _plain(text: str) -> str:
    """Without addresses, which are others in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
