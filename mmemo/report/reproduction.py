"""Provenance of a run: commands, config, machine and checksums, with file names hidden if they are private."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from natsort import natsorted

from mmemo.evaluation.predictions import PREDICTION_FILES
from mmemo.files import checksum
from mmemo.studies.crossval import COMMAND_FILE
from mmemo.training.run_folder import ENVIRONMENT_FILE, environment

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
"""Settings whose values are always hidden."""
FILE_ENDINGS = (
    ".csv", ".tsv", ".parquet", ".ckpt", ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".txt", ".json", ".yaml", ".yml",
)  # fmt: skip
"""Values with these endings are hidden."""
MODEL_OWNERS = ("openai/", "sentence-transformers/", "facebook/", "microsoft/")
"""Model ids of these owners are not file names."""


@dataclass(frozen=True)
class Provenance:
    """How to reproduce a run.

    Args:
        config: YAML of the run; empty if unknown.
        versions: Version of each package.
        machine: Processor and accelerators.
        environment_of_run: Whether versions and machine are those of the run; otherwise they are those of the report.
        seed: Random seed; None if unknown.
        sha256: Checksum of each input and checkpoint.
        private: Whether file names are hidden.
        commands: Commands that made the run and the report.
        tuned: Whether settings were tuned on inner folds.
        decisions: What was chosen on inner folds, for each outer fold.
        nested: Whether calibration was fitted on inner folds.
    """

    config: str
    versions: dict[str, str]
    machine: str
    environment_of_run: bool
    seed: int | None
    sha256: dict[str, str]
    private: bool
    commands: list[str]
    tuned: bool
    decisions: list[dict[str, Any]]
    nested: bool


def provenance(
    run: Path,
    config_folder: Path | None,
    config: dict[str, Any],
    private: bool = False,
    manifest: Path | None = None,
    of_study: bool = False,
    report_options: Sequence[str] = (),
) -> Provenance:
    """Collects how to reproduce a run.

    Args:
        run: Folder of the run, or file of predictions.
        config_folder: Folder with the run's config; None if there is none.
        config: The run's config.
        private: Hide file names.
        manifest: Manifest of the predictions, if it differs from the config's.
        of_study: The run belongs to a clinical study, so its own name may be a patient's.
        report_options: Options of ``mmemo report``.
    """
    stored = config_folder / ENVIRONMENT_FILE if config_folder is not None else None
    environment_of_run = stored is not None and stored.is_file()
    system = json.loads(stored.read_text()) if stored is not None and environment_of_run else environment()
    shown = hide_paths(config) if private else config
    shown_run = hide_name(run.name) if of_study else run.name if private else str(run)
    files = [run / f"fold{number}" / "decisions.json" for number in range(1, 1 + len(list(run.glob("fold*"))))]
    decisions = [{"fold": path.parent.name, **json.loads(path.read_text())} for path in files if path.is_file()]
    return Provenance(
        config=yaml.safe_dump(shown, sort_keys=False) if shown else "",
        versions=system["versions"],
        machine=system["machine"],
        environment_of_run=environment_of_run,
        seed=config.get("seed_everything"),
        sha256={name: checksum(path) for name, path in _files(run, config_folder, config, manifest).items()},
        private=private,
        commands=[
            *([_run_command(run, config_folder, private)] if run.is_dir() else []),
            " ".join([f"mmemo report {shown_run}", *report_options]),
        ],
        tuned=config_folder is not None and (config_folder / "tuning").is_dir(),
        decisions=decisions,
        nested=bool(decisions),
    )


def _files(run: Path, config_folder: Path | None, config: dict[str, Any], manifest: Path | None) -> dict[str, Path]:
    """Predictions, config, manifests and checkpoints of a run."""
    candidates = [run / name for name in PREDICTION_FILES] if run.is_dir() else [run]
    predictions = next(filter(Path.is_file, candidates), None)
    files = {} if predictions is None else {"predictions": predictions}
    if config_folder is not None:
        files["config"] = config_folder / "config.yaml"
        data = config.get("data", {})
        manifests = [data.get("manifest"), *(corpus["manifest"] for corpus in data.get("corpora") or [])]
        for number, path in enumerate(manifests):
            if path and Path(path).is_file():
                files[f"manifest {number}" if number else "manifest"] = Path(path)
        checkpoint = f"{config.get('checkpoint', 'best')}.ckpt"
        for path in natsorted(run.rglob(f"checkpoints/{checkpoint}"), key=str):
            folder = path.parent.parent.relative_to(run)
            if not {"inner", "tuning"} & set(folder.parts):
                files[f"checkpoint {folder}" if folder.parts else "checkpoint"] = path
    if manifest is not None:
        files["manifest"] = manifest
    return files


def _run_command(run: Path, config_folder: Path | None, private: bool) -> str:
    """The stored command of a run, or a likely one."""
    stored = run / COMMAND_FILE
    if stored.is_file():
        command = stored.read_text().strip()
    else:
        command = f"mmemo {'fit' if config_folder == run else 'crossval'} --config experiment.yaml"
    if not private:
        return command
    words = shlex.split(command)
    return " ".join(
        str(hide_paths(word, option if option.startswith("--") else ""))
        for option, word in zip(["", *words], words, strict=False)
    )


def hide_paths(value: Any, key: str = "") -> Any:
    """Replaces every file name in settings by a placeholder.

    Args:
        value: A setting, or dicts and lists of settings.
        key: Name of the setting.

    Example:
        >>> hide_paths({"lr": 0.1, "model_id": "openai/whisper-base", "manifest": "jane.csv"})
        {'lr': 0.1, 'model_id': 'openai/whisper-base', 'manifest': 'file-87d7a31b'}
    """
    if isinstance(value, dict):
        return {name: hide_paths(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [hide_paths(entry, key) for entry in value]
    if not isinstance(value, str) or not value:
        return value
    name = key.rpartition(".")[2].lstrip("-")
    if name in PATH_KEYS or "/" in value or "\\" in value or Path(value).suffix.lower() in FILE_ENDINGS:
        return value if value.startswith(MODEL_OWNERS) else hide_name(value)
    return value


def hide_name(name: str) -> str:
    """Placeholder for the name of a file or folder, which may contain a person's name.

    Args:
        name: Name of a file or folder.
    """
    return f"file-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
