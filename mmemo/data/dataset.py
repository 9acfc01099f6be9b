"""Rows of a manifest -> batches of tensors, from one source per modality."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmemo.audio.reader import AudioError
from mmemo.data.batch import EmotionBatch, Example, collate
from mmemo.labels import UNLABELLED

log = logging.getLogger(__name__)

Source = Callable[[int, int], Tensor]
"""Function of a manifest row and a view number that returns one modality; it has no time steps if that is missing."""


class Sources(NamedTuple):
    """Where a batch takes each modality from; None for a modality that the model does not have.

    Args:
        audio: Waveforms, or features of the audio encoder.
        descriptors: Waveforms, or features of the second encoder of the waveform.
        text: Token ids, or features of the text encoder.
    """

    audio: Source | None = None
    descriptors: Source | None = None
    text: Source | None = None


class Targets(NamedTuple):
    """Labels of every row of a manifest.

    Args:
        emotion: Class indices ``(row,)`` int64; ``labels.UNLABELLED`` without a label.
        votes: Share of the raters' votes for each class ``(row, num_classes)``; zeros without votes.
        dimensions: Valence, arousal and dominance ``(row, 3)``; NaN without a label.
    """

    emotion: np.ndarray
    votes: np.ndarray
    dimensions: np.ndarray

    def present(self) -> dict[str, np.ndarray]:
        """Returns kind of label -> rows that have it ``(row,)`` bool."""
        return {
            "emotion": self.emotion != UNLABELLED,
            "votes": self.votes.sum(1) > 0,
            "dimensions": np.isfinite(self.dimensions).any(1),
        }


class EmotionDataset(Dataset[EmotionBatch]):
    """Batches of some rows of a manifest, indexed by lists of positions among those rows.

    An utterance whose audio became unreadable after the start keeps its place, without audio and without labels, and
    a warning is logged: one bad file must not end a long run.

    Args:
        rows: Manifest rows of one side of the split ``(num_rows,)``.
        targets: Labels of every row of the manifest.
        sources: Where each modality comes from.
        num_views: Number of views of each utterance, of which one is drawn at random each time.
        repeats: Number of views of each utterance that are returned one after the other, starting with view 0.
    """

    def __init__(
        self, rows: np.ndarray, targets: Targets, sources: Sources, num_views: int = 1, repeats: int = 1
    ) -> None:  # fmt: skip
        self.rows = rows
        self.targets = targets
        self.sources = sources
        self.num_views = num_views
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> EmotionBatch:
        rows = [int(self.rows[position]) for position in positions]
        if self.num_views > 1:
            return collate([self._example(row, int(torch.randint(self.num_views, ()))) for row in rows])
        return collate([self._example(row, view) for row in rows for view in range(self.repeats)])

    def _example(self, row: int, view: int) -> Example:
        audio, audio_is_readable = _read(self.sources.audio, row, view)
        descriptors, descriptors_are_readable = _read(self.sources.descriptors, row, view)
        text = None if self.sources.text is None else self.sources.text(row, view)
        emotion = int(self.targets.emotion[row])
        votes, dimensions = torch.tensor(self.targets.votes[row]), torch.tensor(self.targets.dimensions[row])
        if not (audio_is_readable and descriptors_are_readable):
            emotion, votes, dimensions = UNLABELLED, torch.zeros_like(votes), torch.full_like(dimensions, torch.nan)
        return Example(row, audio, descriptors, text, emotion, votes, dimensions, view)


def _read(source: Source | None, row: int, view: int) -> tuple[Tensor | None, bool]:
    """Returns what a source gives, and whether it was readable."""
    if source is None:
        return None, True
    try:
        return source(row, view), True
    except AudioError as error:
        log.warning("%s; the utterance is skipped", error)
        return torch.zeros(0), False
