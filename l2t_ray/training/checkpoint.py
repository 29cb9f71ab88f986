"""Checkpoints: all that a run is at one moment, written whole or not at all.

A checkpoint is a directory. It is written under a temporary name, flushed, and renamed when complete; `manifest.json`
holds a checksum of every file, so that a damaged one is noticed and the one before it is used. Rows are in files that
the checkpoints share (`rows_file.py`). Replicas of the student are identical, so one worker's directory is the whole
checkpoint, whatever the number of workers.

Each holds the fingerprint of the experiment too, and one of another experiment is refused.
"""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2t_ray.files import PRIVATE_DIRECTORY, flush
from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.masking import masked
from l2t_ray.training import rows_file
from l2t_ray.training.checkpoint_names import checkpoint_name, in_order, newer
from l2t_ray.training.fingerprint import Fingerprint, difference
from l2t_ray.training.mirror import MANIFEST, Mirror
from l2t_ray.training.rows_file import EMPTY, Mark, RowsFile

FORMAT = 4
FINGERPRINT = "fingerprint.json"
Read = TypeVar("Read")
_FILES = ("student.pt", "method.pt", "teacher.pt", "arms.pt", "config.yaml", FINGERPRINT, "progress.json")

_WRITER_FAILED = ("inline_container", "iostream error", "PytorchStreamWriter")
"""What PyTorch says when the system takes no more of a file; the system's own reason is lost by then."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run is at one moment, between two rounds.

    Attributes:
        arm: name of the method in training.
        round: its finished rounds.
        state: student and method.
        teacher: the teacher's state; None for methods without one.
        rows: metrics of all rounds so far, of all arms.
        snapshots: weights of the loss network by arm and round, for pictures and for the learned loss at the end.
        finished: students of the arms that are done.
        diverged: arms that were given up, and why. The state is then that before the round that failed.
        memories: what the students of these arms have said of each training image, where a method remembers it.
        aside: tensors and numbers that whoever keeps the checkpoint adds to it; training leaves them alone.
    """

    arm: str
    round: int
    state: MethodState
    teacher: Mapping[str, Any] | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    finished: dict[str, StudentState] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    memories: dict[str, Tensor] = field(default_factory=dict)
    aside: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return checkpoint_name(
            num_rows=len(self.rows), arm=self.arm, round=self.round, is_diverged=self.arm in self.diverged
        )


class _Damage(Exception):
    """What is wrong with a checkpoint that cannot be used."""


class CheckpointStore:
    """Checkpoints of one run in one directory. One process writes at a time.

    Args:
        directory: created when first written to.
        keep: how many checkpoints to keep.
        config: the resolved configuration, stored beside the state for people to read.
        fingerprint: what is computed; None: whatever is there is read.
        mirror: where each checkpoint is copied to, and looked for as well; None: here alone.
        another: how the caller is told to set another place.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        config: str = "",
        fingerprint: Fingerprint | None = None,
        mirror: Mirror | None = None,
        another: str = "another name=",
    ):
        self._another = another
        self._directory, self._keep, self._config, self._mirror = directory, keep, config, mirror
        self.fingerprint = fingerprint
        self._rows = RowsFile()
        self._own_copies: set[str] = set()

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint and forgets the oldest ones.

        Raises:
            UserError: if the directory or the storage cannot be written to; what was there stays.
        """
        final, temporary = self._directory / checkpoint.name, self._directory / f".{checkpoint.name}.{os.getpid()}"
        try:
            self._directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            for stale in self._directory.glob(".*-*-*.*"):  # of a writer that was killed: there is only one at a time
                if in_order([stale.name[1:].rpartition(".")[0]]):
                    shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(mode=PRIVATE_DIRECTORY)
            before = self._rows.mark
            self._write(checkpoint, temporary)
            if final.exists():  # the same round, redone after a restart: the same content
                shutil.rmtree(final)
            temporary.rename(final)
            flush(self._directory)
            self._rows.moved(final)
            kept = self._kept(final.name)
            for name in self._local():
                if name not in kept:
                    shutil.rmtree(self._directory / name, ignore_errors=True)
            if self._mirror is not None:
                self._copy(self._mirror, final.name, before)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {final}: {_reason(error)}; earlier checkpoints are untouched, "
                "free space or choose another directory with `runs=DIR`, in fit with `checkpoint=DIR`."
            ) from None
        return final

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, here or in storage; None if there is none at all. Says so when it passes
        over a damaged one.

        Raises:
            UserError: if there are checkpoints and all are damaged, if one is of another experiment or an older
                version, or if storage cannot be read.
        """
        stored = self._from_storage(self._stored)
        found = in_order({*self._local(), *stored})
        for name in reversed(found):
            try:
                return self._checkpoint(name, is_stored=name in stored)
            except _Damage as damage:
                warnings.warn(
                    f"checkpoint {self._directory / name} is damaged ({damage}); using the one before it", stacklevel=2
                )
        if found:
            raise UserError(
                f"all {len(found)} checkpoints in {self._directory} are damaged; start again under another name."
            )
        return None

    def read(self, name: str) -> Checkpoint:
        """The checkpoint of that name.

        Raises:
            UserError: if it is not there, or damaged, or of another experiment.
        """
        try:
            return self._checkpoint(name, is_stored=name in self._from_storage(self._stored))
        except _Damage as damage:
            raise UserError(
                f"the checkpoint {self._directory / name} is damaged ({damage}); go on from the one before it with "
                "--resume."
            ) from None

    def fingerprint_of(self, checkpoint: Checkpoint) -> Fingerprint:
        """Of the experiment as it was when a checkpoint was written that was read from here."""
        return json.loads((self._directory / checkpoint.name / FINGERPRINT).read_text())

    def share(self, checkpoint: Checkpoint) -> None:
        """Copies a checkpoint that was read to storage, if that has none as new: by one process at a time.

        Raises:
            UserError: if storage cannot be written to.
        """
        if self._mirror is None:
            return
        stored = self._from_storage(self._stored)
        if checkpoint.name in stored or newer(stored, checkpoint.name):
            return
        try:
            self._copy(self._mirror, checkpoint.name, EMPTY)
        except OSError as error:
            raise UserError(f"cannot write to {self._mirror.place}: {_reason(error)}; check its access.") from None

    def _checkpoint(self, name: str, *, is_stored: bool) -> Checkpoint:
        path, mirror = self._directory / name, self._mirror if is_stored else None
        try:
            parts = _load(path)
        except _Damage:
            if mirror is None:
                raise
            self._from_storage(lambda: mirror.fetch(name, self._directory))
            parts = _load(path)
        self._check(parts["fingerprint"], str(self._directory), "or remove that directory")
        try:
            mark = Mark(*parts["progress"]["rows"])
            rows = self._rows_of(path, mark, mirror)
            student, progress, arms = StudentState(**parts["student"]), parts["progress"], parts["arms"]
            finished = {name: StudentState(**state) for name, state in arms["finished"].items()}
            return Checkpoint(
                arm=progress["arm"],
                round=progress["round"],
                state=MethodState(student, parts["method"]),
                teacher=parts["teacher"],
                rows=rows,
                snapshots=arms["snapshots"],
                finished=finished,
                diverged=progress["diverged"],
                memories=arms.get("memories", {}),  # earlier versions did not keep it
                aside=arms.get("aside", {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _Damage(f"{type(error).__name__}: {error}") from None

    def _rows_of(self, path: Path, mark: Mark, mirror: Mirror | None) -> list[dict[str, Any]]:
        try:
            return self._rows.read(path, mark)
        except ValueError as error:
            content = None if mirror is None else self._from_storage(lambda: mirror.fetch_rows(mark))
            if content is None:
                raise _Damage(str(error)) from None
        rows_file.put(path, content)
        try:
            return self._rows.read(path, mark)
        except ValueError as error:
            raise _Damage(f"{error} in storage") from None

    def _stored(self) -> list[str]:
        """The checkpoints in storage, oldest first, which are of this experiment.

        Raises:
            UserError: if one is not.
            OSError: if storage cannot be read.
        """
        if self._mirror is None:
            return []
        names = self._mirror.names()
        for name in names:
            if name not in self._own_copies:
                text = self._mirror.text(name, FINGERPRINT)
                try:
                    found = None if text is None else json.loads(text)
                except ValueError:
                    continue  # damaged: passed over when it is read
                self._check(found, self._mirror.place, "or another storage=")
                self._own_copies.add(name)
        return names

    def _check(self, found: Fingerprint | None, place: str, remedy: str) -> None:
        """Refuses a checkpoint of another experiment."""
        if self.fingerprint is None:
            return
        if found is None:
            raise UserError(
                f"{place} holds checkpoints of an older version of this package, which do not say of what experiment "
                f"they are; set {self._another} {remedy}."
            )
        if (problem := difference(found, self.fingerprint)) is not None:
            raise UserError(
                f"{place} holds checkpoints of another experiment of this name: {problem}; set {self._another} "
                f"{remedy}."
            )

    def _from_storage(self, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except OSError as error:
            raise UserError(
                f"cannot read the checkpoints in storage: {_reason(error)}; check storage and its access."
            ) from None

    def _copy(self, mirror: Mirror, name: str, before: Mark) -> None:
        stored = self._stored()  # first: a run that is not this one is not to be written over
        mirror.put(self._directory / name, self._rows, before)
        self._own_copies.add(name)
        for other in stored:
            if other not in self._kept(name):
                mirror.forget(other)

    def _local(self) -> list[str]:
        if not self._directory.is_dir():
            return []
        return in_order(path.name for path in self._directory.iterdir() if path.is_dir())

    def _kept(self, newest: str) -> list[str]:
        """The newest ones here, up to one that has just been written: what is later was passed over as damaged."""
        local = self._local()
        later = newer(local, newest)
        return [name for name in local if name not in later][-self._keep :]

    def _write(self, checkpoint: Checkpoint, directory: Path) -> None:
        torch.save(plain_student(checkpoint.state.student), directory / "student.pt")
        torch.save(dict(checkpoint.state.extra), directory / "method.pt")
        torch.save(None if checkpoint.teacher is None else dict(checkpoint.teacher), directory / "teacher.pt")
        finished = {name: plain_student(student) for name, student in checkpoint.finished.items()}
        arms = {"snapshots": checkpoint.snapshots, "finished": finished, "memories": checkpoint.memories}
        if checkpoint.aside:
            arms["aside"] = checkpoint.aside
        torch.save(arms, directory / "arms.pt")
        (directory / "config.yaml").write_text(self._config)
        (directory / FINGERPRINT).write_text(json.dumps(self.fingerprint, indent=1))
        mark = self._rows.append(checkpoint.rows, directory)
        progress = {
            "format": FORMAT,
            "arm": checkpoint.arm,
            "round": checkpoint.round,
            "rows": mark,
            "diverged": checkpoint.diverged,
            "torch": torch.__version__,
        }
        (directory / "progress.json").write_text(json.dumps(progress))
        checksums = {}
        for path in sorted(directory.iterdir()):
            if path.name in rows_file.NAMES:  # they grow; `progress.json` has their checksum
                continue
            checksums[path.name] = _checksum(path)
            flush(path)
        (directory / MANIFEST).write_text(json.dumps(checksums, indent=1))
        flush(directory / MANIFEST)


def _load(directory: Path) -> dict[str, Any]:
    """What the files of a checkpoint hold, by their names, rows apart.

    Raises:
        _Damage: if a file is not as it was written.
        UserError: if another version wrote it.
    """
    try:
        checksums = json.loads((directory / MANIFEST).read_text())
        if not isinstance(checksums, dict) or "progress.json" not in checksums:
            raise _Damage("its manifest is incomplete")
        for name, checksum in checksums.items():
            if _checksum(directory / name) != checksum:
                raise _Damage(f"{name} does not match its checksum")
        progress = json.loads((directory / "progress.json").read_text())
        if progress["format"] != FORMAT:
            raise UserError(
                f"{directory} has checkpoint format {progress['format']}, this version reads {FORMAT}; "
                "resume it with the version that wrote it."
            )
        if not checksums.keys() >= set(_FILES):
            raise _Damage("its manifest is incomplete")
        found = {
            Path(name).stem: torch.load(directory / name, weights_only=True, map_location="cpu")
            for name in _FILES
            if name.endswith(".pt")
        }
        return found | {"progress": progress, "fingerprint": json.loads((directory / FINGERPRINT).read_text())}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _Damage(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def plain_student(student: StudentState) -> dict[str, Any]:
    """The state of a student as plain dictionaries, which are read without running code."""
    return {name: dict(part) if isinstance(part, Mapping) else part for name, part in student._asdict().items()}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _WRITER_FAILED):
        return "no space left on the disk, or no more for this user or file"
    return getattr(error, "strerror", None) or masked(" ".join(str(error).split()))
