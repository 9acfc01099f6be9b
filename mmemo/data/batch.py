"""Utterances -> padded tensors with masks, in batches of like duration."""

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
        row: Of the manifest.
        audio: Waveform ``(samples,)`` or precomputed features ``(layer, time, dim)``; None without audio
            encoder.
        descriptors: The same of a second encoder of the waveform.
        text: Token ids ``(token,)`` or precomputed features ``(layer, token, dim)``; None without text encoder.
        target: Class index, ``labels.UNLABELLED`` where there is no label.
        votes: Share of the raters' votes for each class ``(num_classes,)``; zeros where nobody voted.
        dimensions: Valence, arousal, dominance ``(3,)``, NaN where there is no label.
        view: Which version of the utterance this is; 0 is the utterance itself.
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
    """Padded utterances; a mask is True where data is real.

    Args:
        row: Rows of the manifest ``(batch,)`` int64.
        audio: Waveforms ``(batch, samples)`` or precomputed features ``(batch, layer, time, dim)``; None for a
            model without audio encoder.
        audio_mask: ``(batch, samples)`` or ``(batch, time)`` bool; all False where the audio is missing.
        descriptors: The same for the second encoder of the waveform.
        descriptors_mask: Its mask.
        text: Token ids ``(batch, token)`` or precomputed features ``(batch, layer, token, dim)``.
        text_mask: ``(batch, token)`` bool; all False where there are no words.
        target: Class indices ``(batch,)`` int64, ``labels.UNLABELLED`` where there is no label.
        votes: Share of the raters' votes for each class ``(batch, num_classes)``; zeros where nobody voted.
        dimensions: Valence, arousal, dominance ``(batch, 3)``, NaN where there is no label.
        view: Which version of each utterance this is ``(batch,)`` int64; 0 is the utterance itself.
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

    def audio_only(self) -> EmotionBatch:
        """The same utterances with their words missing."""
        return self._replace(text_mask=None if self.text_mask is None else torch.zeros_like(self.text_mask))

    def text_only(self) -> EmotionBatch:
        """The same utterances with their audio missing."""
        return self._replace(
            audio_mask=None if self.audio_mask is None else torch.zeros_like(self.audio_mask),
            descriptors_mask=None if self.descriptors_mask is None else torch.zeros_like(self.descriptors_mask),
        )


def collate(examples: Sequence[Example]) -> EmotionBatch:
    """Pads examples into a batch.

    Args:
        examples: At least one; all have been made by the same sources.
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
    """Pads ``(time,)`` or ``(layer, time, dim)`` to the longest, at least 1; half precision becomes single."""
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
    """Batches of like duration, divided among processes.

    Training shuffles at random, sorts by duration within groups of many batches, and shuffles the batches.
    Evaluation sorts by duration. Every utterance is seen once per epoch, by one process, unless ``weights`` are given;
    all processes have the same number of batches.

    Args:
        durations: Duration of each utterance, in any unit.
        batch_size: Utterances per step, over all processes.
        shuffle: Whether this is for training.
        seed: Of the shuffling; together with the epoch it fixes the order.
        rank: This process, from 0.
        num_processes: How many share the work.
        weights: Training draws that many utterances again and again with these chances, which need not add up
            to 1; without them each comes once.
    """

    GROUP_BATCHES = 16  # sorted together in training: longer groups waste less padding but mix less

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
        wanted = math.ceil(len(self.durations) / self.batch_size)
        return max(1, min(wanted, len(self.durations) // self.num_replicas))  # each process gets a share of each

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        random = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            order = random.permutation(len(self.durations))
            if self.weights is not None:
                order = random.choice(order, len(order), p=self.weights[order] / self.weights.sum())
            group = self.GROUP_BATCHES * self.batch_size
            groups = [order[first : first + group] for first in range(0, len(order), group)]
            order = np.concatenate([part[np.argsort(self.durations[part], kind="stable")] for part in groups])
        else:
            order = np.argsort(self.durations, kind="stable")
        batches = np.array_split(order, len(self))  # sizes differ by one at most
        if self.shuffle:
            batches = [batches[number] for number in random.permutation(len(batches))]
        for batch in batches:
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()
