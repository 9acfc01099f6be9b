"""RAVDESS: 24 actors, two sentences, eight emotions (Livingstone and Russo 2018, CC BY-NC-SA 4.0)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmemo.data.corpora.files import audio_files

EMOTIONS = {
    "01": "neutral", "02": "calm", "03": "happiness", "04": "sadness",
    "05": "anger", "06": "fear", "07": "disgust", "08": "surprise",
}  # fmt: skip
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}


def ravdess(root: Path) -> pd.DataFrame:
    """Reads the speech part of RAVDESS.

    A file name is seven numbers: modality-channel-emotion-intensity-statement-repetition-actor. Odd actors are male,
    even ones female. The speaker is the actor's number, ``01`` to ``24``.

    Args:
        root: Folder that contains ``Actor_01`` to ``Actor_24``.
    """
    rows = []
    for path in audio_files(root):
        fields = path.stem.split("-")
        if len(fields) != 7 or fields[1] != "01" or fields[2] not in EMOTIONS:
            continue  # a song, a video, or not a file of the corpus
        _, _, emotion, intensity, statement, _, actor = fields
        rows.append(
            {
                "id": path.stem,
                "path": str(path),
                "emotion": EMOTIONS[emotion],
                "speaker": actor,
                "gender": "male" if int(actor) % 2 else "female",
                "language": "en",
                "intensity": "strong" if intensity == "02" else "normal",
                "statement": STATEMENTS.get(statement, ""),
            }
        )
    return pd.DataFrame(rows)
