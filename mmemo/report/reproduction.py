"""How a run came about: its commands, config, machine and checksums, without names where these are private."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from mmemo.evaluation.participants import natural_order
from mmemo.files import checksum
from mmemo.studies.crossval import COMMAND_FILE
from mmemo.training.experiment import ENVIRONMENT_FILE, environment

PATH_KEYS = (
    "manifest",
    "path",
    "default_root_dir",
    "teacher",
    "folder",
    "weights",
    "run",
    "config",
    "space",
    "ckpt_path",
)
FILE_ENDINGS = (
    ".csv", ".tsv", ".parquet", ".ckpt", ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".txt", ".json", ".yaml", ".yml",
)  # fmt: skip
"""By either a study's page knows a file name."""


def provenance(
    run: Path, member: Path | None, config: dict[str, Any], private: bool, manifest: Path | None, of_study: bool
) -> dict[str, Any]:
    """How to do it again.

    Args:
        run: Folder of the run, or file of predictions.
        member: Folder with a config in it; None where there is none.
        config: Of the run.
        private: Put marks in the place of file names.
        manifest: What was predicted, where it is not that of the config.
        of_study: The run may be called after a patient.
    """
    shown = without_paths(config) if private else config
    told = member / ENVIRONMENT_FILE if member is not None and (member / ENVIRONMENT_FILE).is_file() else None
    found: dict[str, Any] = {
        "config": yaml.safe_dump(shown, sort_keys=False) if shown else "",
        **(json.loads(told.read_text()) if told is not None else environment()),
        "environment_of_run": told is not None,
        "seed": config.get("seed_everything"),
        "sha256": {},
        "private": private,
    }
    shown_run = marked(run.name) if of_study else run.name if private else run
    places = [run / f"predictions.{kind}" for kind in ("parquet", "csv")] if run.is_dir() else [run]
    files = {"predictions": next((place for place in places if place.is_file()), None)}
    if member is not None:
        files["config"] = member / "config.yaml"
        data = config.get("data", {})
        for number, path in enumerate([data.get("manifest"), *(one["manifest"] for one in data.get("corpora") or [])]):
            if path and Path(path).is_file():
                files[f"manifest {number}" if number else "manifest"] = Path(path)
        judged = f"{config.get('checkpoint', 'best')}.ckpt"
        for path in sorted(run.rglob(f"checkpoints/{judged}"), key=lambda one: natural_order(str(one))):
            place = path.parent.parent.relative_to(run)
            if not {"inner", "tuning"} & set(place.parts):
                files[f"checkpoint {place}" if place.parts else "checkpoint"] = path
    if manifest is not None:
        files["manifest"] = manifest
    for name, file in files.items():
        if file is not None:
            found["sha256"][name] = checksum(file)
    began = run / COMMAND_FILE
    command = (
        began.read_text().strip()
        if began.is_file()
        else f"mmemo {'fit' if member == run else 'crossval'} --config experiment.yaml"
    )
    if private:
        words = shlex.split(command)
        command = " ".join(
            str(without_paths(word, before if before.startswith("--") else ""))
            for before, word in zip(["", *words], words, strict=False)
        )
    made = [command] if run.is_dir() else []
    found["commands"] = [*made, f"mmemo report {shown_run}"]
    found["tuned"] = (member / "tuning").is_dir() if member is not None else False
    decided = [run / f"fold{number}" / "decisions.json" for number in range(1, 1 + len(list(run.glob("fold*"))))]
    found["decisions"] = [
        {"fold": path.parent.name, **json.loads(path.read_text())} for path in decided if path.is_file()
    ]
    found["nested"] = bool(found["decisions"])
    return found


def without_paths(value: Any, key: str = "") -> Any:
    """The same settings with a mark in the place of every file name.

    Args:
        value: One setting, or tables and lists of them.
        key: What it is a setting of.
    """
    if isinstance(value, dict):
        return {name: without_paths(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, key) for one in value]
    if not isinstance(value, str) or not value:
        return value
    name = key.rpartition(".")[2].lstrip("-")
    if name in PATH_KEYS or "/" in value or "\\" in value or Path(value).suffix.lower() in FILE_ENDINGS:
        known = value.startswith(("openai/", "sentence-transformers/", "facebook/", "microsoft/"))
        return value if known else marked(value)
    return value


def marked(name: str) -> str:
    """What stands in the place of a name that may be a person's.

    Args:
        name: Of a file or folder.
    """
    return f"file-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
