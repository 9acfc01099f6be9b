"""Audio files below a folder."""

from __future__ import annotations

from pathlib import Path

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}


def audio_files(root: Path) -> list[Path]:
    """All audio files below a folder, sorted by path.

    Args:
        root: The folder.
    """
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
