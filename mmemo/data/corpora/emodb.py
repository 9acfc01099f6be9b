"""EMO-DB: ten German actors, ten sentences, seven emotions (Burkhardt et al. 2005)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmemo.data.corpora.files import audio_files

EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral",
}  # fmt: skip
MALE_SPEAKERS = {"03", "10", "11", "12", "15"}


def emodb(root: Path) -> pd.DataFrame:
    """Reads EMO-DB.

    A file name, such as ``03a01Fa``, is speaker (2 characters), sentence (3), emotion (1) and take (1).

    Args:
        root: Folder that contains the audio files, at any depth.
    """
    rows = []
    for path in audio_files(root):
        name = path.stem
        if len(name) != 7 or not name[:2].isdigit() or name[5] not in EMOTIONS:
            continue
        rows.append(
            {
                "id": name,
                "path": str(path),
                "emotion": EMOTIONS[name[5]],
                "speaker": name[:2],
                "gender": "male" if name[:2] in MALE_SPEAKERS else "female",
                "language": "de",
                "sentence": name[2:5],
            }
        )
    return pd.DataFrame(rows)
