"""Test-time averaging: several views of each utterance -> one output."""

from __future__ import annotations

from functools import partial

import torch
from einops import reduce

from mmemo.data.batch import EmotionBatch
from mmemo.models.emotion_model import EmotionOutput
from mmemo.training.mixing import reordered


def first_views(batch: EmotionBatch, num_views: int) -> EmotionBatch:
    """Returns each utterance once, from a batch that holds its views one after the other.

    Args:
        batch: ``num_views`` views of each utterance; every tensor is ``(utterance * view, ...)``.
        num_views: Views of each utterance, 1 or more.
    """
    if num_views == 1:
        return batch
    return reordered(batch, torch.arange(0, len(batch.row), num_views, device=batch.row.device))


def average_views(output: EmotionOutput, num_views: int) -> EmotionOutput:
    """Averages the probabilities, dimensions, gates and vectors of each utterance over its views.

    Attention maps and sequences are left out, since views differ in length.

    Args:
        output: For ``num_views`` views of each utterance, one after the other.
        num_views: Views of each utterance, 1 or more.

    Shape:
        every tensor ``(utterance * view, ...)`` -> ``(utterance, ...)``; logits become log-probabilities
    """
    if num_views == 1:
        return output
    mean = partial(reduce, pattern="(utterance view) ... -> utterance ...", reduction="mean", view=num_views)
    return output._replace(
        embedding=mean(output.embedding),
        logits=None if output.logits is None else mean(output.logits.float().softmax(-1)).log(),
        dimensions=None if output.dimensions is None else mean(output.dimensions),
        gates=tuple(mean(gate) for gate in output.gates),
        modality_weights=None if output.modality_weights is None else mean(output.modality_weights),
        attention=(),
        encoded=(),
    )
