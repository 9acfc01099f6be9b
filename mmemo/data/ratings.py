"""Rater votes -> labels: the majority, or the whole distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mmemo.data.manifest import VOTES_PREFIX


def vote_shares(frame: pd.DataFrame, classes: Sequence[str], label_map: Mapping[str, str | None]) -> np.ndarray:
    """Soft labels: the share of each utterance's votes that each class got.

    Args:
        frame: Table with columns ``votes_EMOTION``.
        classes: In the order of the shares.
        label_map: Renames emotions; votes for one that it maps to nothing do not count.

    Returns:
        ``(row, num_classes)`` float32; rows sum to 1, or are zero where nobody voted for any class.

    Raises:
        ValueError: There are no votes, or votes for an emotion that is neither a class nor mapped.
    """
    names = [str(name).removeprefix(VOTES_PREFIX) for name in frame.columns if str(name).startswith(VOTES_PREFIX)]
    if not names:
        raise ValueError(
            f"the loss reads votes, but no column is called {VOTES_PREFIX}EMOTION, such as {VOTES_PREFIX}anger"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(frame), len(classes)), dtype=np.float32)
    for name in names:
        meant = label_map.get(name, name)
        if meant is None:
            continue
        if meant not in numbers:
            raise ValueError(
                f"column {VOTES_PREFIX}{name} votes for {meant!r}, expected one of data.classes={list(classes)}; add "
                f"it there, or leave these votes out with data.label_map ({name}: null)"
            )
        counts[:, numbers[meant]] += frame[VOTES_PREFIX + name].fillna(0).to_numpy(dtype=np.float32)
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
