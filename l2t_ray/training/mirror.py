"""Copies of checkpoints on shared storage: s3://, gs://, hdfs://, file://, whatever pyarrow has a filesystem for.

Every machine then keeps its run directory on its own disk, and begins from the copy that all of them see.

<storage>/<run>/checkpoints/<checkpoint>/    as in the run directory, without the rows
                rows/                        a file for each checkpoint: the rows it added to the one before
"""

import os
import shutil
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from l2t_ray.files import PRIVATE_DIRECTORY
from l2t_ray.interfaces import UserError
from l2t_ray.masking import masked
from l2t_ray.processes import is_alive
from l2t_ray.training.checkpoint_names import in_order
from l2t_ray.training.rows_file import EMPTY, NAMES, Mark, RowsFile

MANIFEST = "manifest.json"
_FETCHED = ".fetched."


class Mirror:
    """One directory of checkpoints on a filesystem.

    Object stores cannot rename a directory. A copy's manifest is written last and deleted first, and a copy without
    one is not there.
    """

    def __init__(self, filesystem: FileSystem, path: str):
        self._files, self._path = filesystem, path.rstrip("/")
        self._rows = self._path.rpartition("/")[0] + "/rows"
        self._rows_until: Mark | None = None  # what this process knows to be in storage

    @classmethod
    def at(cls, uri: str, *parts: str) -> "Mirror":
        """The directory `parts` below a URI. Credentials come from where the filesystem's own tools look for them.

        Raises:
            UserError: if pyarrow knows no such filesystem.
        """
        try:
            filesystem, path = FileSystem.from_uri(uri)
        except (OSError, ValueError) as error:
            raise UserError(
                f"storage={masked(uri)} cannot be used: {masked(' '.join(str(error).split()))}; "
                "give a URI such as s3://bucket/folder."
            ) from None
        return cls(filesystem, "/".join((path.rstrip("/"), *parts)))

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self._files.type_name} storage at {self._path}"

    def names(self) -> list[str]:
        """The complete checkpoints, oldest first."""
        found = self._files.get_file_info(FileSelector(self._path, allow_not_found=True))
        names = in_order(info.base_name for info in found if info.type == FileType.Directory)
        return [name for name in names if self._is_file(f"{self._path}/{name}/{MANIFEST}")]

    def text(self, name: str, file: str) -> str | None:
        """A small file of a checkpoint; None if it has none of that name."""
        path = f"{self._path}/{name}/{file}"
        if not self._is_file(path):
            return None
        with self._files.open_input_stream(path) as stream:
            return stream.read().decode(errors="replace")

    def put(self, checkpoint: Path, rows: RowsFile, before: Mark) -> None:
        """Copies a checkpoint.

        Args:
            rows: up to this checkpoint; what storage lacks of them goes there first.
            before: where the rows of the checkpoint before this one end.
        """
        self._put_rows(rows, before)
        target = f"{self._path}/{checkpoint.name}"
        self.forget(checkpoint.name)
        self._files.create_dir(target)
        files = [file for file in checkpoint.iterdir() if file.name not in NAMES]
        for file in sorted(files, key=lambda file: (file.name == MANIFEST, file.name)):
            copy_files(str(file), f"{target}/{file.name}", LocalFileSystem(), self._files)

    def fetch(self, name: str, directory: Path) -> None:
        """Copies a checkpoint into a local directory, in place of a damaged one of its name."""
        is_damaged = (directory / name).exists()
        final, temporary = directory / name, directory.parent / f"{_FETCHED}{name}.{os.getpid()}"
        _sweep(directory.parent)
        temporary.mkdir(mode=PRIVATE_DIRECTORY, parents=True)
        try:
            directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
            copy_files(f"{self._path}/{name}", str(temporary), self._files, LocalFileSystem())
            if is_damaged:
                shutil.rmtree(final, ignore_errors=True)
            try:
                temporary.rename(final)
            except OSError:  # another worker of this machine was faster
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def fetch_rows(self, mark: Mark) -> bytes | None:
        """The rows up to a mark; None where storage does not have all of them."""
        pieces = self._pieces_until(mark)
        if pieces is None:
            return None
        content = b""
        for name in pieces:
            with self._files.open_input_stream(f"{self._rows}/{name}") as stream:
                content += stream.read()
        self._rows_until = mark
        return content

    def forget(self, name: str) -> None:
        """Deletes a checkpoint, if it is there."""
        target = f"{self._path}/{name}"
        if self._is_file(f"{target}/{MANIFEST}"):
            self._files.delete_file(f"{target}/{MANIFEST}")
        if self._files.get_file_info(target).type == FileType.Directory:
            self._files.delete_dir(target)

    def _put_rows(self, rows: RowsFile, before: Mark) -> None:
        """Adds the rows after a mark, or all where storage lacks what was before."""
        mark = rows.mark
        if self._rows_until == mark:
            return
        if before != EMPTY and self._rows_until != before and self._pieces_until(before) is None:
            before = EMPTY
        if before != mark:
            self._files.create_dir(self._rows)
            piece = f"{_end_of(before)}-{_end_of(mark)}.jsonl"
            with self._files.open_output_stream(f"{self._rows}/{piece}") as stream:
                stream.write(rows.bytes_of(before.size, mark.size))
        self._rows_until = mark

    def _pieces_until(self, mark: Mark) -> list[str] | None:
        """The files that make up the rows up to a mark, in order: each begins where another one ends."""
        found = self._files.get_file_info(FileSelector(self._rows, allow_not_found=True))
        by_end = {_ends_of(info.base_name)[1]: info.base_name for info in found}
        pieces, end = [], _end_of(mark)
        while end != _end_of(EMPTY):
            if end not in by_end:
                return None
            pieces.append(by_end.pop(end))
            end = _ends_of(pieces[-1])[0]
        return pieces[::-1]

    def _is_file(self, path: str) -> bool:
        return self._files.get_file_info(path).type == FileType.File


def _sweep(directory: Path) -> None:
    """Removes what a process that was killed had fetched; what another worker of this machine fetches now stays."""
    for stale in directory.glob(f"{_FETCHED}*"):
        name, _, pid = stale.name.removeprefix(_FETCHED).rpartition(".")
        if in_order([name]) and pid.isdecimal() and (int(pid) == os.getpid() or not is_alive(int(pid))):
            shutil.rmtree(stale, ignore_errors=True)


def _end_of(mark: Mark) -> str:
    """A place in the rows by its distance from their beginning, and by what stands before it."""
    return f"{mark.size:012d}.{mark.sha256[:16]}"


def _ends_of(piece: str) -> tuple[str, str]:
    begin, _, end = piece.removesuffix(".jsonl").partition("-")
    return begin, end
