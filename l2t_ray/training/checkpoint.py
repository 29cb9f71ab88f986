"""Checkpoints: one consistent cut of a run, written whole or not at all.

A checkpoint is a directory. It is written under a temporary name, flushed, and renamed when complete; `manifest.json`
holds a checksum of every file, so that a damaged one is noticed and the one before it is used. Replicas of the
student are identical, so one worker's directory is the whole cut, whatever the number of workers.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2t_ray.interfaces import MethodState, StudentState, UserError
from l2t_ray.training.mirror import MANIFEST, Mirror

FORMAT = 3


@dataclass(frozen=True)
class Cut:
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
    """

    arm: str
    round: int
    state: MethodState
    teacher: Mapping[str, Any] | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    finished: dict[str, StudentState] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)


class CheckpointStore:
    """Checkpoints of one run in one directory, newest last by name.

    Args:
        directory: created when first written to.
        keep: how many complete checkpoints to keep.
        config: the resolved configuration, stored beside the state.
        mirror: where each checkpoint is copied to, and where the newest is looked for; None: here alone.
    """

    def __init__(self, directory: Path, *, keep: int = 2, config: str = "", mirror: Mirror | None = None):
        self._directory, self._keep, self._config, self._mirror = directory, keep, config, mirror

    def save(self, cut: Cut) -> Path:
        """Writes a cut and forgets the oldest ones.

        Raises:
            UserError: if the directory cannot be written to; what was there stays.
        """
        name = f"{len(cut.rows):07d}-{cut.arm}-{cut.round:06d}" + ("-diverged" if cut.arm in cut.diverged else "")
        final, temporary = self._directory / name, self._directory / f".{name}.{os.getpid()}"
        try:
            for stale in self._directory.glob(".*"):  # of a writer that was killed: there is only one at a time
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._write(cut, temporary)
            if final.exists():  # the same round, redone after a restart: the same content
                shutil.rmtree(final)
            temporary.rename(final)
            _flush(self._directory)
            if self._mirror is not None:
                self._mirror.put(final, keep=[path.name for path in self._complete()[-self._keep :]])
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(
                f"cannot write the checkpoint {final}: {reason}; earlier checkpoints are untouched, "
                "free space or choose another directory with `runs=DIR`."
            ) from None
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self) -> Cut | None:
        """The newest undamaged cut; None if there is none at all. Says so when it passes over a damaged one.

        Raises:
            UserError: if there are checkpoints and all are damaged, or if their mirror cannot be read.
        """
        try:
            found = self._complete() if self._mirror is None else self._mirror.fetch(self._directory)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot read the checkpoints in storage: {reason}; check storage and its access."
            ) from None
        for path in reversed(found):
            problem = _damage(path)
            if problem is None:
                return _read(path)
            warnings.warn(f"checkpoint {path} is damaged ({problem}); using the one before it", stacklevel=2)
        if found:
            raise UserError(
                f"all {len(found)} checkpoints in {self._directory} are damaged; start again under another name."
            )
        return None

    def _complete(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _write(self, cut: Cut, directory: Path) -> None:
        torch.save(_plain_student(cut.state.student), directory / "student.pt")
        torch.save(dict(cut.state.extra), directory / "method.pt")
        torch.save(None if cut.teacher is None else dict(cut.teacher), directory / "teacher.pt")
        finished = {name: _plain_student(student) for name, student in cut.finished.items()}
        torch.save({"snapshots": cut.snapshots, "finished": finished}, directory / "arms.pt")
        (directory / "rows.json").write_text(json.dumps(cut.rows))
        (directory / "config.yaml").write_text(self._config)
        progress = {
            "format": FORMAT,
            "arm": cut.arm,
            "round": cut.round,
            "diverged": cut.diverged,
            "torch": torch.__version__,
        }
        (directory / "progress.json").write_text(json.dumps(progress))
        checksums = {}
        for path in sorted(directory.iterdir()):
            checksums[path.name] = _checksum(path)
            _flush(path)
        (directory / MANIFEST).write_text(json.dumps(checksums, indent=1))
        _flush(directory / MANIFEST)


def _read(directory: Path) -> Cut:
    def load(name: str) -> Any:
        return torch.load(directory / name, weights_only=True, map_location="cpu")

    progress = json.loads((directory / "progress.json").read_text())
    if progress["format"] != FORMAT:
        raise UserError(
            f"{directory} has checkpoint format {progress['format']}, this version reads {FORMAT}; "
            "resume it with the version that wrote it."
        )
    arms = load("arms.pt")
    return Cut(
        arm=progress["arm"],
        round=progress["round"],
        state=MethodState(StudentState(**load("student.pt")), load("method.pt")),
        teacher=load("teacher.pt"),
        rows=json.loads((directory / "rows.json").read_text()),
        snapshots=arms["snapshots"],
        finished={name: StudentState(**student) for name, student in arms["finished"].items()},
        diverged=progress["diverged"],
    )


def _plain_student(student: StudentState) -> dict[str, Any]:
    return {"theta": student.theta, "velocity": student.velocity, "buffers": dict(student.buffers)}


def _damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint; None if all is well."""
    try:
        checksums = json.loads((directory / MANIFEST).read_text())
        if not isinstance(checksums, dict) or "progress.json" not in checksums:
            return "its manifest is incomplete"
        for name, checksum in checksums.items():
            if _checksum(directory / name) != checksum:
                return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file or directory entry is on the disk: a rename must not overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
