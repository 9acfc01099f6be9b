"""A small SQLite file that several processes may read and write at once, and that survives a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock


class Store:
    """Opens a connection per use, so that it may be shared between threads and forked processes.

    Args:
        path: The file; its folder is made.
        schema: ``CREATE TABLE IF NOT EXISTS ...`` statements, divided by semicolons.
    """

    def __init__(self, path: Path, schema: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with FileLock(path.with_name(f".{path.name}.lock")):  # a new file refuses a second process that asks for WAL
            with closing(sqlite3.connect(path, timeout=60.0)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # the file keeps it
            with self.connect() as connection:
                for statement in schema.split(";"):  # executescript() would end the transaction
                    connection.execute(statement)

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements are committed together, or not at all."""
        connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()  # rolls back what was not committed
