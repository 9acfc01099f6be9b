from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from mmemo.database import Store

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY); CREATE TABLE IF NOT EXISTS owners (key TEXT)"


def open_new_stores(folder: Path, number: int, together: Any) -> None:
    """What one process of several does: opens one new file after another, each at the moment when the others do."""
    for round_number in range(60):
        together.wait(120)
        with Store(folder / f"{round_number}.sqlite", SCHEMA).connect() as connection:
            connection.execute("INSERT INTO facts VALUES (?)", (f"of {number}",))


def test_processes_that_open_a_new_file_at_one_moment_share_it(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    together = processes.Barrier(4)
    workers = [processes.Process(target=open_new_stores, args=(tmp_path, number, together)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    for path in tmp_path.glob("*.sqlite"):
        with Store(path, SCHEMA).connect() as connection:
            assert connection.execute("SELECT count(*) FROM facts").fetchone() == (4,)


def test_what_fails_midway_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", SCHEMA)

    def fail_midway() -> None:
        with store.connect() as connection:
            connection.execute("INSERT INTO facts VALUES ('half')")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    with store.connect() as connection:
        assert connection.execute("SELECT count(*) FROM facts").fetchone() == (0,)
