"""Rater votes -> labels: the majority, or the whole distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mmemo.data.manifest import VOTES_PREFIX


def voted_emotions(frame: pd.DataFrame) -> list[str]:
    """Emotions that a table has votes for.

    Args:
        frame: Table with columns ``votes_EMOTION``.
    """
    return [str(name).removeprefix(VOTES_PREFIX) for name in frame.columns if str(name).startswith(VOTES_PREFIX)]


def mapped_votes(frame: pd.DataFrame, label_map: Mapping[str, str | None]) -> pd.DataFrame:
    """Votes under the names of a label map.

    Args:
        frame: Table with columns ``votes_EMOTION``.
        label_map: Renames emotions, whose votes are added up; votes for one that it maps to nothing do not count.

    Returns:
        The table, its votes renamed; the table itself where there is nothing to rename.
    """
    old = [VOTES_PREFIX + name for name in voted_emotions(frame) if label_map.get(name, name) != name]
    if not old:
        return frame
    mapped = frame.drop(columns=old)
    for column in old:
        meant = label_map[column.removeprefix(VOTES_PREFIX)]
        if meant is not None:
            counts = frame[column].fillna(0)
            mapped[VOTES_PREFIX + meant] = counts + (mapped.get(VOTES_PREFIX + meant, pd.Series(0.0, frame.index)))
    return mapped


def vote_shares(frame: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Soft labels: the share of each utterance's votes that each class got.

    Args:
        frame: Table with columns ``votes_EMOTION``.
        classes: In the order of the shares.

    Returns:
        ``(row, num_classes)`` float32; rows sum to 1, or are zero where nobody voted for any class.

    Raises:
        ValueError: There are no votes, or votes for an emotion that is not a class.
    """
    names = voted_emotions(frame)
    if not names:
        raise ValueError(
            f"the loss reads votes, but no column is called {VOTES_PREFIX}EMOTION, such as {VOTES_PREFIX}anger"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(frame), len(classes)), dtype=np.float32)
    for name in names:
        if name not in numbers:
            raise ValueError(
                f"column {VOTES_PREFIX}{name} votes for {name!r}, expected one of data.classes={list(classes)}; add "
                f"it there, or leave these votes out with a label_map ({name}: null)"
            )
        counts[:, numbers[name]] += frame[VOTES_PREFIX + name].fillna(0).to_numpy(dtype=np.float32)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)


def majority(votes: pd.DataFrame) -> pd.Series:
    """Hard labels: the emotion with most votes; none where two share the lead or nobody voted.

    Args:
        votes: One column of counts per emotion, named as the emotion.

    Returns:
        Emotion of each row, or a missing value.
    """
    counts = votes.fillna(0)
    best = counts.max(axis="columns")
    leaders = counts.eq(best, axis="index").sum(axis="columns")
    winners = counts.idxmax(axis="columns")
    return winners.where((leaders == 1) & (best > 0), None)
