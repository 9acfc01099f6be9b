"""How a benchmark keeps its figures: one JSON file each, with what made them."""

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


def record(name: str, figures: Mapping[str, object], measured: Collection[str] | None = None) -> Path:
    """Writes ``results/NAME.json``.

    Args:
        name: Of the group of figures.
        figures: Name -> number or list of numbers; accuracies in per cent, times in seconds.
        measured: Which of them this run measured, all when not given, and which rows of its ``table``; the others keep
            the commit, the machine and the date that they had.
    """
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    stamps = before.get("earlier", {})
    stamp = {key: before[key] for key in ("commit", "machine", "date") if key in before}
    kept = [] if measured is None else [key for key in _names(figures) if key not in measured]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "mmemo", "configs", "benchmarks/*.py"],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    content = {
        "figures": dict(figures),
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
        "commit": commit.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }
    if kept:
        content["earlier"] = {key: stamps.get(key, stamp) for key in kept}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return path


def record_beside(name: str, figures: Mapping[str, object]) -> Path:
    """Adds to ``results/NAME.json``, which other processes may be adding to at the same time.

    Args:
        name: Of the group of figures.
        figures: What this run measured; the others keep the stamps that they had. A ``table`` is a list of rows that
            are known by their first value, and gains those that are new.
    """
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"mmemo_benchmark_{name}.lock"):
        kept: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
        both = {**kept, **figures}
        if "table" in figures:
            rows = {next(iter(row.values())): row for row in [*kept.get("table", []), *both["table"]]}
            both["table"] = list(rows.values())
        return record(name, both, _names(figures))


def _names(figures: Mapping[str, Any]) -> list[str]:
    """Of all that has a stamp of its own: figures, and the rows of their table."""
    rows = [next(iter(row.values())) for row in figures.get("table", [])]
    return [*(key for key in figures if key != "table"), *rows]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def corpus(name: str) -> Path:
    """Folder of a corpus, below ``MMEMO_CORPORA``.

    Args:
        name: Of the folder.
    """
    path = CORPORA / name
    if not path.is_dir():
        sys.exit(f"{path}: no such folder; set MMEMO_CORPORA to the folder that holds {name}")
    return path
