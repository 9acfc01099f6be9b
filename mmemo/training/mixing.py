"""Changes to a training batch: mixup, and dropping whole modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmemo.data.batch import EmotionBatch
from mmemo.models.emotion_model import EmotionModel, EmotionOutput

MODALITY_CONDITIONS = ("audio_only", "text_only")
"""Inputs that ``by_modality`` evaluates besides everything: the audio only, the text only."""

UNCALIBRATED = "uncalibrated"
"""Condition of a model that is calibrated to speakers: as for an unknown speaker."""

Criterion = Callable[[EmotionOutput, EmotionBatch], Tensor]
"""Function of a model's output and the labels that returns a loss."""


class Mixed(NamedTuple):
    """A batch whose inputs are mixed, and the two batches whose labels apply to it.

    Args:
        inputs: Mixed inputs.
        first: Batch whose labels count ``share``.
        second: Batch whose labels count ``1 - share``.
        share: Share of the first batch in the inputs, in [0, 1].
    """

    inputs: EmotionBatch
    first: EmotionBatch
    second: EmotionBatch
    share: float = 1.0

    def criterion(self, criterion: Criterion) -> Callable[[EmotionOutput], Tensor]:
        """Returns the loss for the labels of both batches, weighted by their shares: output -> scalar ``()``."""

        def weighted(output: EmotionOutput) -> Tensor:
            if self.share == 1.0:
                return criterion(output, self.first)
            return self.share * criterion(output, self.first) + (1 - self.share) * criterion(output, self.second)

        return weighted


def mixup(batch: EmotionBatch, alpha: float) -> Mixed:
    """Mixes a batch with itself in another order, by a share drawn from Beta(alpha, alpha).

    Follows Zhang et al. 2018, <https://arxiv.org/abs/1710.09412>. A time step is real if it is real in either batch.

    Args:
        batch: Waveforms ``(batch, samples)`` or features ``(batch, layer, time, dim)`` with their masks.
        alpha: Parameter of the Beta distribution, above 0.

    Example:
        >>> from mmemo.data.batch import Example, collate
        >>> clips = [Example(row, torch.rand(4), None, None, row, torch.zeros(2), torch.zeros(3)) for row in (0, 1)]
        >>> mixed = mixup(collate(clips), alpha=0.2)
        >>> mixed.inputs.audio.shape, 0 <= mixed.share <= 1
        (torch.Size([2, 4]), True)
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = reordered(batch, torch.randperm(len(batch.row), device=batch.row.device))
    mixed: dict[str, Tensor] = {}
    for name in ("audio", "descriptors", "text"):
        values, others = getattr(batch, name), getattr(other, name)
        if values is not None:
            mask, other_mask = getattr(batch, f"{name}_mask"), getattr(other, f"{name}_mask")
            axes = (slice(None),) if values.ndim == 2 else (slice(None), None, slice(None), None)
            mixed[name] = share * values * mask[axes] + (1 - share) * others * other_mask[axes]
            mixed[f"{name}_mask"] = mask | other_mask
    return Mixed(batch._replace(**mixed), batch, other, share)


def drop_modalities(batch: EmotionBatch, chance: float) -> EmotionBatch:
    """Removes the text of some utterances and the audio of others, never the last modality of an utterance.

    Args:
        batch: Audio and text with their masks ``(batch, time)``; only the masks change.
        chance: Probability of each, in [0, 0.5].
    """
    masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask) if mask is not None]
    if not chance or not masks or batch.text_mask is None:
        return batch
    has_both = masks[0].any(1) & batch.text_mask.any(1)
    draw = torch.rand(len(batch.row), device=has_both.device)
    no_audio = (has_both & (draw < chance))[:, None]
    no_text = (has_both & (draw > 1 - chance))[:, None]
    return batch._replace(
        audio_mask=None if batch.audio_mask is None else batch.audio_mask & ~no_audio,
        descriptors_mask=None if batch.descriptors_mask is None else batch.descriptors_mask & ~no_audio,
        text_mask=batch.text_mask & ~no_text,
    )


def reordered(batch: EmotionBatch, order: Tensor) -> EmotionBatch:
    """Returns the utterances at some positions of a batch, in that order.

    Args:
        batch: The utterances.
        order: Positions ``(new_batch,)`` int64.
    """
    return EmotionBatch(*(None if values is None else values[order] for values in batch))  # type: ignore[arg-type]


def conditions_of(model: EmotionModel, by_modality: bool) -> tuple[str, ...]:
    """Returns the conditions that a model is tested in; the first is the empty name, for everything.

    Args:
        model: The model.
        by_modality: Whether each modality is also tested alone, if the model has both.
    """
    alone = MODALITY_CONDITIONS if by_modality and model.takes_audio and model.takes_text else ()
    return ("", *([UNCALIBRATED] if model.speaker_norms else []), *alone)


def restricted(batch: EmotionBatch, condition: str) -> EmotionBatch:
    """Returns a batch with the inputs of a condition only.

    Args:
        batch: The utterances, with masks ``(batch, time)``; only the masks change.
        condition: One of ``MODALITY_CONDITIONS``, ``UNCALIBRATED``, or empty for everything.
    """
    if condition == "audio_only":
        return batch.audio_only()
    if condition == UNCALIBRATED:
        return batch.uncalibrated()
    return batch.text_only() if condition == "text_only" else batch
