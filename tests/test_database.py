from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from mmemo.database import Database

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY); CREATE TABLE IF NOT EXISTS owners (key TEXT)"


def open_new_databases(folder: Path, number: int, barrier: Any) -> None:
    """Runs in one process: opens one new file after another, each at the same time as the other processes."""
    for round_number in range(60):
        barrier.wait(120)
        with Database(folder / f"{round_number}.sqlite", SCHEMA).connect() as connection:
            connection.execute("INSERT INTO facts VALUES (?)", (f"process {number}",))


def test_processes_can_open_the_same_new_file_at_the_same_time(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    barrier = processes.Barrier(4)
    workers = [processes.Process(target=open_new_databases, args=(tmp_path, number, barrier)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    for path in tmp_path.glob("*.sqlite"):
        with Database(path, SCHEMA).connect() as connection:
            assert connection.execute("SELECT count(*) FROM facts").fetchone() == (4,)


def test_a_failed_transaction_is_rolled_back(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.sqlite", SCHEMA)

    def fail_midway() -> None:
        with database.connect() as connection:
            connection.execute("INSERT INTO facts VALUES ('half')")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM facts").fetchone() == (0,)
