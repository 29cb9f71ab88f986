"""Where MLflow's stores are: URIs of SQLite files, and how one is opened without harm."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

_LONGEST_OPENING_S = 120.0
_PLAIN, _WITH_DRIVER = "sqlite:///", "sqlite+pysqlite:///"


def absolute_uri(uri: str, root: Path) -> str:
    """The URI with relative SQLite paths resolved, since workers and later commands run in other directories.

    Args:
        uri: as the user gave it; empty: the file `mlflow.db` in `root`.
    """
    if not uri:
        return sqlite_uri(root / "mlflow.db")
    path = sqlite_path(uri)
    if path is None or path.is_absolute():
        return uri
    return sqlite_uri(path.absolute()) + (f"?{options}" if (options := uri.partition("?")[2]) else "")


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, wherever it lies: `%`, `?` and `#` in a path would otherwise end or change it."""
    quoted = "".join(f"%{ord(letter):02X}" if letter in "%?#" else letter for letter in str(path))
    # MLflow makes the parent of what follows `sqlite:///` as it stands, quoted: an empty folder beside the real one.
    return (_PLAIN if quoted == str(path) else _WITH_DRIVER) + quoted


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URI; None for other stores, and for a database in memory."""
    for prefix in (_PLAIN, _WITH_DRIVER):
        if uri.startswith(prefix):
            path = unquote(uri.removeprefix(prefix).partition("?")[0])
            return None if path in ("", ":memory:") or path.startswith("file:") else Path(path)
    return None


def artifact_location(uri: str, root: Path) -> str | None:
    """An absolute folder for stores in a database (MLflow's own default is relative to where it runs);
    None for a server, which decides for itself."""
    path = sqlite_path(uri)
    if path is not None:
        return (path.parent / "artifacts").as_uri()
    is_database = uri.startswith(("postgresql", "mysql", "mssql", "sqlite"))
    return (root / "artifacts").as_uri() if is_database else None


@contextmanager
def opened_alone(uri: str) -> Iterator[None]:
    """While an SQLite file is opened: one process at a time, for two that make its tables at once leave it broken.

    Fails at once when the file cannot be opened; MLflow would try for two minutes.
    """
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock"), timeout=_LONGEST_OPENING_S):
        connection = sqlite3.connect(path, timeout=5)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
        yield
