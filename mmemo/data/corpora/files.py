"""Audio files below a folder."""

from __future__ import annotations

from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}


def audio_files(root: Path) -> list[Path]:
    """Lists all audio files below a folder, sorted by path.

    Args:
        root: The folder, searched recursively.
    """
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
