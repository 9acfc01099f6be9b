"""A small SQLite file that several processes may read and write at once, and that survives a killed process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock


class Database:
    """SQLite file with one connection per use, so that threads and forked processes can share the object.

    Args:
        path: The file; its folder is created.
        schema: ``CREATE TABLE IF NOT EXISTS ...`` statements, separated by semicolons.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     database = Database(Path(folder) / "a.sqlite", "CREATE TABLE IF NOT EXISTS words (word TEXT)")
        ...     with database.connect() as connection:
        ...         _ = connection.execute("INSERT INTO words VALUES ('hello')")
        ...     with database.connect() as connection:
        ...         connection.execute("SELECT word FROM words").fetchall()
        [('hello',)]
    """

    def __init__(self, path: Path, schema: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with FileLock(path.with_name(f".{path.name}.lock")):  # two processes cannot switch a new file to WAL at once
            with closing(sqlite3.connect(path, timeout=60.0)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # stored in the file
            with self.connect() as connection:
                for statement in schema.split(";"):  # executescript() would end the transaction
                    connection.execute(statement)

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Opens a connection whose statements are committed together, or not at all."""
        connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()  # rolls back uncommitted statements
