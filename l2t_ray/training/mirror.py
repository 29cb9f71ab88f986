"""Copies of checkpoints on shared storage: s3://, gs://, hdfs://, file://, whatever pyarrow has a filesystem for.

Every machine then keeps its run directory on its own disk, and begins from the copy that all of them see.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from l2t_ray.interfaces import UserError

MANIFEST = "manifest.json"


class Mirror:
    """One directory of checkpoints on a filesystem.

    Object stores cannot rename a directory. A copy's manifest is written last and deleted first, and a copy without
    one is not there.
    """

    def __init__(self, filesystem: FileSystem, path: str):
        self._files, self._path = filesystem, path.rstrip("/")

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
                f"storage={uri} cannot be used: {' '.join(str(error).split())}; give a URI such as s3://bucket/folder."
            ) from None
        return cls(filesystem, "/".join((path.rstrip("/"), *parts)))

    def put(self, checkpoint: Path, *, keep: Collection[str]) -> None:
        """Copies a checkpoint, and forgets all that are neither this one nor named in `keep`."""
        target = f"{self._path}/{checkpoint.name}"
        self._delete(target)
        self._files.create_dir(target)
        for file in sorted(checkpoint.iterdir(), key=lambda file: (file.name == MANIFEST, file.name)):
            copy_files(str(file), f"{target}/{file.name}", LocalFileSystem(), self._files)
        for name in self._names():
            if name != checkpoint.name and name not in keep:
                self._delete(f"{self._path}/{name}")

    def fetch(self, directory: Path) -> list[Path]:
        """The complete checkpoints, oldest first, in a local directory; those that it has already are not copied."""
        complete = [name for name in self._names() if self._is_file(f"{self._path}/{name}/{MANIFEST}")]
        return [self._fetched(name, directory) for name in complete]

    def _fetched(self, name: str, directory: Path) -> Path:
        final, temporary = directory / name, directory.parent / f".fetched.{name}.{os.getpid()}"
        if not final.exists():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            directory.mkdir(exist_ok=True)
            copy_files(f"{self._path}/{name}", str(temporary), self._files, LocalFileSystem())
            try:
                temporary.rename(final)
            except OSError:  # another worker of this machine was faster
                shutil.rmtree(temporary)
        return final

    def _names(self) -> list[str]:
        found = self._files.get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def _is_file(self, path: str) -> bool:
        return self._files.get_file_info(path).type == FileType.File

    def _delete(self, target: str) -> None:
        if self._is_file(f"{target}/{MANIFEST}"):
            self._files.delete_file(f"{target}/{MANIFEST}")
        if self._files.get_file_info(target).type == FileType.Directory:
            self._files.delete_dir(target)
