"""MELD: dialogue utterances from a television series, seven emotions (Poria et al. 2019, GPL-3.0)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

EMOTIONS = {
    "anger": "anger", "disgust": "disgust", "fear": "fear", "joy": "happiness",
    "neutral": "neutral", "sadness": "sadness", "surprise": "surprise",
}  # fmt: skip
SPLIT_FILES = {"train": "train_sent_emo.csv", "val": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}


def meld(root: Path) -> pd.DataFrame:
    """Reads MELD with its official split; text only.

    The main characters are in every split, so its configs need ``allow_speaker_overlap: true``.

    Args:
        root: Folder that contains the ``*_sent_emo.csv`` files, or some of them.
    """
    tables = []
    for split, name in SPLIT_FILES.items():
        path = root / name
        if path.is_file():
            tables.append(
                pd.read_csv(path, dtype=str, keep_default_na=False, encoding=_encoding(path)).assign(split=split)
            )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return pd.DataFrame(
        {
            "id": table["split"] + "_" + table["Dialogue_ID"] + "_" + table["Utterance_ID"],
            "text": table["Utterance"].map(_repair_punctuation).str.strip(),
            "emotion": table["Emotion"].map(EMOTIONS),
            "speaker": table["Speaker"],
            "session": table["split"] + "_" + table["Dialogue_ID"],
            "language": "en",
            "split": table["split"],
            "sentiment": table["Sentiment"],
        }
    )


def _encoding(path: Path) -> str:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _repair_punctuation(text: str) -> str:
    """Replaces cp1252 punctuation that was decoded as control characters."""
    marks = {0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: "-", 0x97: "-", 0x85: "...", 0x2019: "'", 0xA0: " "}
    return text.translate(marks)
