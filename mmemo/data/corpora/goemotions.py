"""GoEmotions: 54 000 English comments with Ekman-level labels (Demszky et al. 2020, Apache-2.0)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmemo.data.manifest import VOTES_PREFIX

EMOTIONS = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
)  # in the order of their numbers
SPLIT_FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


def goemotions(root: Path) -> pd.DataFrame:
    """Reads GoEmotions with its official split; text only.

    Each label is a vote; a comment with several labels has no single emotion. The authors are anonymous, so each
    comment counts as a speaker of its own.

    Args:
        root: Folder that contains ``train.tsv``, ``dev.tsv`` and ``test.tsv``, or some of them.
    """
    tables = []
    for split, name in SPLIT_FILES.items():
        path = root / name
        if path.is_file():
            columns = ["text", "labels", "id"]
            table = pd.read_csv(path, sep="\t", names=columns, dtype=str, quoting=3, keep_default_na=False)
            tables.append(table.assign(split=split))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True).drop_duplicates("id")
    labels = table["labels"].str.split(",")
    votes = {
        f"{VOTES_PREFIX}{name}": labels.map(lambda numbers, number=str(number): int(number in numbers))
        for number, name in enumerate(EMOTIONS)
    }
    single = labels.str.len() == 1
    return pd.DataFrame(
        {
            "id": table["id"],
            "text": table["text"].str.strip(),
            "emotion": labels.str[0].map(lambda number: EMOTIONS[int(number)]).where(single),
            "speaker": table["id"],
            "language": "en",
            "split": table["split"],
            **votes,
        }
    )
