"""A folder of audio files that effects draw recordings from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf")


def list_audio_files(effect: object, folder: str) -> list[str]:
    """Lists the audio files of a folder, recursively, as ``path:bytes``.

    Args:
        effect: The effect that needs them, named in the error.
        folder: The folder.

    Raises:
        ValueError: The folder has no audio files.
    """
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise ValueError(
            f"{type(effect).__name__}(folder={folder!r}): no audio there, expected a folder of "
            f"{', '.join(AUDIO_SUFFIXES)} files"
        )
    return [f"{path}:{path.stat().st_size}" for path in paths]  # a replaced file is another setting


def read_random_file(files: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """Reads one of the files of :func:`list_audio_files` as a waveform ``(samples,)`` at 16 kHz."""
    from mmemo.audio.reader import read_audio

    return read_audio(Path(files[int(generator.integers(len(files)))].rsplit(":", 1)[0]))
