"""Stores the results of a benchmark in one JSON file, with the commit, machine and date of the measurement."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CORPORA = Path(os.environ.get("MMEMO_CORPORA", HERE.parent.parent / "shared" / "data"))


def record(name: str, values: Mapping[str, object], measured: Collection[str] | None = None) -> Path:
    """Writes ``results/NAME.json``.

    Args:
        name: Name of the benchmark.
        values: Name -> number or list of numbers; accuracies in percent, times in seconds.
        measured: Names of the values and of the rows of ``table`` that this run measured. The others keep their
            commit, machine and date. Defaults to all.
    """
    path = RESULTS / f"{name}.json"
    previous = json.loads(path.read_text()) if path.exists() else {}
    stamps = previous.get("earlier", {})
    stamp = {key: previous[key] for key in ("commit", "machine", "date") if key in previous}
    kept = [] if measured is None else [key for key in _stamped_names(values) if key not in measured]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    changes = subprocess.run(
        ["git", "status", "--porcelain", "mmemo", "configs", "benchmarks/*.py"],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    content = {
        "figures": dict(values),
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
        "commit": commit.stdout.strip() + ("+" if changes.stdout.strip() else ""),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }
    if kept:
        content["earlier"] = {key: stamps.get(key, stamp) for key in kept}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(values, indent=1))
    return path


def update_record(name: str, values: Mapping[str, object]) -> Path:
    """Adds values to ``results/NAME.json``; several processes may do so at the same time.

    Args:
        name: Name of the benchmark.
        values: Values that this run measured; all others keep their commit, machine and date. The rows of a ``table``
            are identified by their first value: known rows are replaced, new rows are appended.
    """
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"mmemo_benchmark_{name}.lock"):
        previous: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
        merged = {**previous, **values}
        if "table" in values:
            rows = {next(iter(row.values())): row for row in [*previous.get("table", []), *merged["table"]]}
            merged["table"] = list(rows.values())
        return record(name, merged, _stamped_names(values))


def _stamped_names(values: Mapping[str, Any]) -> list[str]:
    """Names of everything with its own commit and date: values, and rows of the table."""
    rows = [next(iter(row.values())) for row in values.get("table", [])]
    return [*(key for key in values if key != "table"), *rows]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def corpus(name: str) -> Path:
    """Returns a corpus folder inside ``MMEMO_CORPORA``.

    Args:
        name: Name of the folder.
    """
    path = CORPORA / name
    if not path.is_dir():
        sys.exit(f"{path}: folder not found. Set MMEMO_CORPORA to the folder that contains {name}.")
    return path
