"""Rater votes -> labels: the majority, or the full distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mmemo.data.manifest import VOTES_PREFIX


def voted_emotions(frame: pd.DataFrame) -> list[str]:
    """Returns the emotions that a table has votes for.

    Args:
        frame: Table with columns ``votes_EMOTION``.
    """
    return [str(name).removeprefix(VOTES_PREFIX) for name in frame.columns if str(name).startswith(VOTES_PREFIX)]


def map_votes(frame: pd.DataFrame, label_map: Mapping[str, str | None]) -> pd.DataFrame:
    """Renames the vote columns by a label map.

    Args:
        frame: Table with columns ``votes_EMOTION``.
        label_map: Old -> new emotion; votes of emotions with the same new name are summed, votes mapped to None are
            dropped.

    Returns:
        The table with renamed votes, or the same object if there is nothing to rename.

    Example:
        >>> frame = pd.DataFrame({"votes_anger": [2], "votes_rage": [1], "votes_other": [1]})
        >>> map_votes(frame, {"rage": "anger", "other": None}).to_dict("list")
        {'votes_anger': [3]}
    """
    old = [VOTES_PREFIX + name for name in voted_emotions(frame) if label_map.get(name, name) != name]
    if not old:
        return frame
    mapped = frame.drop(columns=old)
    for column in old:
        emotion = label_map[column.removeprefix(VOTES_PREFIX)]
        if emotion is not None:
            counts = frame[column].fillna(0)
            mapped[VOTES_PREFIX + emotion] = counts + mapped.get(VOTES_PREFIX + emotion, pd.Series(0.0, frame.index))
    return mapped


def vote_shares(frame: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Returns soft labels: the share of each utterance's votes for each class.

    Args:
        frame: Table with columns ``votes_EMOTION``.
        classes: Emotions in the order of the shares.

    Returns:
        ``(row, num_classes)`` float32; a row sums to 1, or is zero without votes.

    Raises:
        ValueError: There are no vote columns, or votes for an emotion that is not a class.

    Example:
        >>> vote_shares(pd.DataFrame({"votes_anger": [3], "votes_sadness": [1]}), ["anger", "sadness"]).tolist()
        [[0.75, 0.25]]
    """
    names = voted_emotions(frame)
    if not names:
        raise ValueError(f"the loss needs votes, expected columns {VOTES_PREFIX}EMOTION, such as {VOTES_PREFIX}anger")
    class_index = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(frame), len(classes)), dtype=np.float32)
    for name in names:
        if name not in class_index:
            raise ValueError(
                f"column {VOTES_PREFIX}{name} has votes for {name!r}, expected one of data.classes={list(classes)}; "
                f"add it there, or leave these votes out with a label_map ({name}: null)"
            )
        counts[:, class_index[name]] += frame[VOTES_PREFIX + name].fillna(0).to_numpy(dtype=np.float32)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)


def majority(votes: pd.DataFrame) -> pd.Series:
    """Returns hard labels: the emotion with the most votes.

    Args:
        votes: One column of counts per emotion, named after it.

    Returns:
        Emotion of each row; missing for a tie or without votes.

    Example:
        >>> majority(pd.DataFrame({"anger": [3, 0], "sadness": [1, 2]})).tolist()
        ['anger', 'sadness']
    """
    counts = votes.fillna(0)
    best = counts.max(axis="columns")
    leaders = counts.eq(best, axis="index").sum(axis="columns")
    winners = counts.idxmax(axis="columns")
    return winners.where((leaders == 1) & (best > 0), None)
