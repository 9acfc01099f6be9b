"""CREMA-D: 91 actors, twelve sentences, six emotions, crowd-sourced ratings (Cao et al. 2014, ODbL 1.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from mmemo.data.corpora.files import audio_files
from mmemo.data.manifest import VOTES_PREFIX, ManifestError
from mmemo.data.ratings import majority

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
SENTENCES = {
    "DFA": "Don't forget a jacket.", "IEO": "It's eleven o'clock.", "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.", "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.", "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.", "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.", "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}  # fmt: skip
VOTE_COLUMNS = {"A": "anger", "D": "disgust", "F": "fear", "H": "happiness", "N": "neutral", "S": "sadness"}
CHANNELS = {"voice": 1, "face": 2, "both": 3}  # first digit of a row number in tabulatedVotes.csv


def cremad(
    root: Path,
    channel: Literal["voice", "face", "both"] = "voice",
    labels: Literal["intended", "majority"] = "intended",
) -> pd.DataFrame:
    """Reads CREMA-D, with the raters' votes as ``votes_*`` columns.

    A clip whose audio is missing gets its sentence as text.

    Args:
        root: Folder that contains ``AudioWAV`` and ``tabulatedVotes.csv``, or one of them.
        channel: Which ratings to use: of the voice, of the face, or of both.
        labels: Whether ``emotion`` is the one that the actor intended, or the one with most votes (missing for a tie).

    Raises:
        ManifestError: The majority is requested and ``tabulatedVotes.csv`` is missing.
    """
    files = {path.stem: path for path in audio_files(root) if len(path.stem.split("_")) == 4}
    votes_file = next(root.rglob("tabulatedVotes.csv"), None)
    votes = pd.DataFrame()
    if votes_file is not None:
        table = pd.read_csv(votes_file, index_col=0)
        table = table[table.index // 100_000 == CHANNELS[channel]].drop_duplicates("fileName").set_index("fileName")
        votes = table[list(VOTE_COLUMNS)].rename(
            columns={key: VOTES_PREFIX + name for key, name in VOTE_COLUMNS.items()}
        )
    names = sorted(set(files) | set(votes.index))
    rows = []
    for name in names:
        actor, sentence, emotion, level = name.split("_")
        if emotion not in EMOTIONS:
            continue  # not a file of the corpus
        rows.append(
            {
                "id": name,
                "path": str(files[name]) if name in files else None,
                "emotion": EMOTIONS[emotion],
                "speaker": actor,
                "language": "en",
                "sentence": sentence,
                "level": level,
                "text": None if name in files else SENTENCES.get(sentence),  # with audio, Whisper transcribes it
            }
        )
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    if labels == "majority" and votes_file is None:
        raise ManifestError(f"{root}: no tabulatedVotes.csv, which the majority labels need")
    if labels == "majority":
        table["emotion"] = table["id"].map(majority(votes.rename(columns=lambda name: name.removeprefix(VOTES_PREFIX))))
    return table.join(votes, on="id")
