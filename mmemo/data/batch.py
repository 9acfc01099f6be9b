"""Utterances -> padded tensors with masks, in batches of similar duration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class Example(NamedTuple):
    """One utterance as tensors; a missing modality has no time steps.

    Args:
        row: Row of the manifest.
        audio: Waveform ``(samples,)`` or precomputed features ``(layer, time, dim)``; None without an audio encoder.
        descriptors: The same for the second encoder of the waveform.
        text: Token ids ``(token,)`` or precomputed features ``(layer, token, dim)``; None without a text encoder.
        target: Class index; ``labels.UNLABELLED`` if there is none.
        votes: Share of the raters' votes for each class ``(num_classes,)``; zeros without votes.
        dimensions: Valence, arousal, dominance ``(3,)``; NaN if unlabelled.
        view: Number of the view; 0 is the utterance itself.
    """

    row: int
    audio: Tensor | None
    descriptors: Tensor | None
    text: Tensor | None
    target: int
    votes: Tensor
    dimensions: Tensor
    view: int = 0


class EmotionBatch(NamedTuple):
    """Padded utterances and their masks; a mask is True for real data.

    Args:
        row: Rows of the manifest ``(batch,)`` int64.
        audio: Waveforms ``(batch, samples)`` or precomputed features ``(batch, layer, time, dim)``; None for a model
            without an audio encoder.
        audio_mask: ``(batch, samples)`` or ``(batch, time)`` bool; all False for missing audio.
        descriptors: The same for the second encoder of the waveform.
        descriptors_mask: Mask of ``descriptors``.
        text: Token ids ``(batch, token)`` or precomputed features ``(batch, layer, token, dim)``; None for a model
            without a text encoder.
        text_mask: ``(batch, token)`` bool; all False for an empty transcript.
        target: Class indices ``(batch,)`` int64; ``labels.UNLABELLED`` if there is none.
        votes: Share of the raters' votes for each class ``(batch, num_classes)``; zeros without votes.
        dimensions: Valence, arousal, dominance ``(batch, 3)``; NaN if unlabelled.
        view: Number of each utterance's view ``(batch,)`` int64; 0 is the utterance itself.
        audio_speaker: Mean and deviation of each speaker's audio features ``(batch, 2, layer, dim)``; None if
            uncalibrated.
        descriptors_speaker: The same for the second encoder of the waveform.
        speaker_offsets: Offsets of the class scores for the speaker ``(batch, num_classes + 1, num_classes)``; None
            likewise.

    Example:
        >>> short, long = (
        ...     Example(row, torch.ones(samples), None, None, 0, torch.zeros(2), torch.zeros(3))
        ...     for row, samples in enumerate((2, 3))
        ... )
        >>> collate([short, long]).audio_mask
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """

    row: Tensor
    audio: Tensor | None
    audio_mask: Tensor | None
    descriptors: Tensor | None
    descriptors_mask: Tensor | None
    text: Tensor | None
    text_mask: Tensor | None
    target: Tensor
    votes: Tensor
    dimensions: Tensor
    view: Tensor | None = None
    audio_speaker: Tensor | None = None
    descriptors_speaker: Tensor | None = None
    speaker_offsets: Tensor | None = None

    def uncalibrated(self) -> EmotionBatch:
        """Returns the same utterances of unknown speakers."""
        return self._replace(audio_speaker=None, descriptors_speaker=None, speaker_offsets=None)

    def audio_only(self) -> EmotionBatch:
        """Returns the same utterances without text."""
        return self._replace(text_mask=None if self.text_mask is None else torch.zeros_like(self.text_mask))

    def text_only(self) -> EmotionBatch:
        """Returns the same utterances without audio."""
        return self._replace(
            audio_mask=None if self.audio_mask is None else torch.zeros_like(self.audio_mask),
            descriptors_mask=None if self.descriptors_mask is None else torch.zeros_like(self.descriptors_mask),
        )


def collate(examples: Sequence[Example]) -> EmotionBatch:
    """Pads examples into a batch.

    Waveforms become ``(batch, samples)``, features ``(batch, layer, time, dim)``.

    Args:
        examples: One or more examples from the same sources.
    """
    audio, audio_mask = _pad([example.audio for example in examples])
    descriptors, descriptors_mask = _pad([example.descriptors for example in examples])
    text, text_mask = _pad([example.text for example in examples])
    return EmotionBatch(
        row=torch.tensor([example.row for example in examples]),
        audio=audio,
        audio_mask=audio_mask,
        descriptors=descriptors,
        descriptors_mask=descriptors_mask,
        text=text,
        text_mask=text_mask,
        target=torch.tensor([example.target for example in examples]),
        votes=torch.stack([example.votes for example in examples]),
        dimensions=torch.stack([example.dimensions for example in examples]),
        view=torch.tensor([example.view for example in examples]),
    )


def _pad(items: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Pads ``(time,)`` or ``(layer, time, dim)`` to the longest time, at least 1; converts half precision to single."""
    present = [item for item in items if item is not None]
    if not present:
        return None, None
    first = present[0]
    axis = 0 if first.ndim == 1 else 1
    lengths = torch.tensor([item.shape[axis] for item in present])
    longest = max(int(lengths.max()), 1)
    shape = list(first.shape)
    shape[axis] = longest
    dtype = first.dtype if first.dtype == torch.long else torch.float32
    padded = torch.zeros(len(present), *shape, dtype=dtype)
    for row, item in zip(padded, present, strict=True):
        row.narrow(axis, 0, item.shape[axis]).copy_(item)
    return padded, torch.arange(longest) < lengths[:, None]


class BucketSampler(DistributedSampler):
    """Samples batches of similar duration and divides them among processes.

    Training shuffles the utterances, sorts them by duration within groups of many batches, and shuffles the batches.
    Evaluation sorts by duration. Without ``weights``, one process sees each utterance once per epoch. All processes
    have the same number of batches.

    Args:
        durations: Duration of each utterance, in any unit.
        batch_size: Utterances per step, over all processes.
        shuffle: Whether to shuffle, as for training.
        seed: Seed of the shuffling; with the epoch it determines the order.
        rank: Index of this process, from 0.
        num_processes: Number of processes.
        weights: Sampling weights; training then draws as many utterances as there are with replacement. They need
            not sum to 1. Defaults to each utterance once.

    Raises:
        ValueError: There are fewer utterances, or utterances per step, than processes.

    Example:
        >>> list(BucketSampler([3.0, 1.0, 2.0, 4.0], batch_size=2))
        [[1, 2], [0, 3]]
    """

    GROUP_BATCHES = 16  # sorted together in training: larger groups need less padding but mix less

    def __init__(
        self,
        durations: Sequence[float],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        num_processes: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        if len(durations) < num_processes:
            raise ValueError(
                f"{len(durations)} utterances cannot be divided among {num_processes} processes; use fewer devices"
            )
        if batch_size < num_processes:
            raise ValueError(f"batch_size={batch_size} is below the number of processes, {num_processes}")
        super().__init__(range(len(durations)), num_processes, rank, shuffle, seed)  # type: ignore[arg-type]
        self.durations = np.asarray(durations, dtype=float)
        self.batch_size = batch_size
        self.weights = None if weights is None else np.asarray(weights, dtype=float)

    def __len__(self) -> int:
        num_batches = math.ceil(len(self.durations) / self.batch_size)
        return max(1, min(num_batches, len(self.durations) // self.num_replicas))  # every process gets part of each

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            order = generator.permutation(len(self.durations))
            if self.weights is not None:
                order = generator.choice(order, len(order), p=self.weights[order] / self.weights.sum())
            group_size = self.GROUP_BATCHES * self.batch_size
            groups = [order[first : first + group_size] for first in range(0, len(order), group_size)]
            order = np.concatenate([group[np.argsort(self.durations[group], kind="stable")] for group in groups])
        else:
            order = np.argsort(self.durations, kind="stable")
        batches = np.array_split(order, len(self))  # sizes differ by at most one
        if self.shuffle:
            batches = [batches[index] for index in generator.permutation(len(batches))]
        for batch in batches:
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()
