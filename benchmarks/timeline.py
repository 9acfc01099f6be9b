"""Makes the README's timeline: ten clips of one RAVDESS actor, joined with pauses, analysed by the shipped model.

    python benchmarks/timeline.py

Actor 11 was not in the training data of `checkpoints/mmemo-student`. The picture goes to `docs/pictures/timeline.png`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from record import HERE, corpus

from mmemo.audio.reader import read_audio
from mmemo.cli.app import main as mmemo

ACTOR = "11"
EMOTIONS = ("01", "01", "04", "04", "06", "05", "05", "03", "03", "01")  # RAVDESS codes: neutral, sad, fearful, ...
SAMPLE_RATE = 16_000


def join_clips() -> np.ndarray:
    """Returns the clips with pauses of 0.3 to 1.2 s between them ``(samples,)``."""
    random = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    num_used: dict[str, int] = {}
    for emotion in EMOTIONS:
        intensity = "01" if emotion == "01" else "02"  # neutral clips have one intensity
        paths = sorted((corpus("ravdess") / f"Actor_{ACTOR}").glob(f"03-01-{emotion}-{intensity}-*.flac"))
        parts.append(read_audio(paths[num_used.get(emotion, 0)]))
        num_used[emotion] = num_used.get(emotion, 0) + 1
        parts.append(np.zeros(int(SAMPLE_RATE * random.uniform(0.3, 1.2)), dtype=np.float32))
    return np.concatenate(parts)


def main() -> None:
    """Writes the picture and prints the table of segments."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        soundfile.write("interview.wav", join_clips(), SAMPLE_RATE)
        assert mmemo(["analyze", "interview.wav", "--out", "out"]) == 0
        shutil.copy(Path("out") / "interview.wav.png", HERE.parent / "docs" / "pictures" / "timeline.png")


if __name__ == "__main__":
    main()
