"""Settings of the whole package: sampling rate, cache folder, offline mode, telemetry of dependencies.

Environment variables are read here and nowhere else:

- ``MMEMO_CACHE``: folder for converted weights, transcripts and features; ``~/.cache/mmemo`` by default.
- ``MMEMO_OFFLINE``: ``1`` forbids every network connection.
- ``MMEMO_DEBUG``: ``1`` shows the traceback of every error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SAMPLE_RATE = 16_000  # Hz; every pretrained audio model in mmemo expects it, so every waveform has it
OFFLINE_VARIABLE = "MMEMO_OFFLINE"
CACHE_VARIABLE = "MMEMO_CACHE"
DEBUG_VARIABLE = "MMEMO_DEBUG"
NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def is_offline() -> bool:
    """Returns whether ``MMEMO_OFFLINE`` forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0", "false", "no")


def is_debugging() -> bool:
    """Returns whether ``MMEMO_DEBUG`` asks for tracebacks."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def go_offline() -> None:
    """Forbids the network from now on, in this process and in processes that it starts."""
    os.environ[OFFLINE_VARIABLE] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # huggingface_hub reads the variable once, when it is imported
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def cache_folder() -> Path:
    """Returns the folder for converted weights, transcripts and features."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mmemo")


def _prepare_dependencies() -> None:
    """Sets the variables that dependencies read once, when they are imported."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"


_prepare_dependencies()
