"""A model applied to a batch of the data module."""

from __future__ import annotations

from mmemo.data.batch import EmotionBatch
from mmemo.models.emotion_model import EmotionModel, EmotionOutput


def run_model(model: EmotionModel, batch: EmotionBatch) -> EmotionOutput:
    """Runs a model on a batch.

    Args:
        model: The model.
        batch: Waveforms ``(batch, samples)``, token ids ``(batch, token)`` or features ``(batch, layer, time, dim)``,
            with their masks, and the statistics of the speakers if the model is to be calibrated.
    """
    output: EmotionOutput = model(
        batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.descriptors, batch.descriptors_mask,
        batch.audio_speaker, batch.descriptors_speaker, batch.speaker_offsets,
    )  # fmt: skip
    return output
