"""The parts in order: encoders, layer mix, gates, fusion, head. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from mmemo.models.fusion import CrossModalAttention
from mmemo.models.gates import FeatureGate
from mmemo.models.heads import ClassHead
from mmemo.models.layer_mix import LayerMix


class EmotionOutput(NamedTuple):
    """What an :class:`EmotionModel` says of a batch.

    Args:
        logits: Scores ``(batch, num_classes)``.
        embedding: The fused vector ``(batch, dim)``.
        audio_gate: How far each audio feature was let through ``(batch, dim)``, in [0, 1]; None without audio.
        text_gate: The same for text.
        audio_attention: How much each audio frame attended to each token ``(batch, audio_time, text_time)``.
        text_attention: How much each token attended to each audio frame ``(batch, text_time, audio_time)``.
    """

    logits: Tensor
    embedding: Tensor
    audio_gate: Tensor | None = None
    text_gate: Tensor | None = None
    audio_attention: Tensor | None = None
    text_attention: Tensor | None = None


class EmotionModel(nn.Module):
    """Recognises emotion from voice, words or both.

    The parts after the encoders are given as classes with their options; the model builds them to fit the
    encoders, so that exchanging one part leaves the others as they are.

    Args:
        classes: Emotion classes in the order of the logits.
        audio_encoder: Turns waveforms into hidden states; none for a model that only reads.
        text_encoder: Turns transcripts into hidden states; none for a model that only listens.
        layer_mix: Joins an encoder's layers, built from their number and feature size.
        gate: Selects features, built from the feature size.
        fusion: Joins the modalities, built from the audio and text feature sizes (None without one).
        head: Scores the classes, built from the fused size and the number of classes.

    Raises:
        ValueError: Without any encoder, or with fewer than two classes or one named twice.

    Shape:
        audio: waveform ``(batch, samples)`` at 16 kHz, or what the encoder's ``precompute`` made of it
        ``(batch, layer, audio_time, dim)``; text: token ids ``(batch, token)``, or precomputed
        ``(batch, layer, token, dim)``; each with its mask -> :class:`EmotionOutput`
    """

    def __init__(
        self,
        classes: Sequence[str],
        audio_encoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        layer_mix: Callable[[int, int], nn.Module] = LayerMix,
        gate: Callable[[int], nn.Module] = FeatureGate,
        fusion: Callable[[int | None, int | None], nn.Module] = CrossModalAttention,
        head: Callable[[int, int], nn.Module] = ClassHead,
    ) -> None:
        super().__init__()
        if audio_encoder is None and text_encoder is None:
            raise ValueError("EmotionModel has neither audio_encoder nor text_encoder; give it one, or both")
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError(f"classes={list(classes)}: expected at least two, each named once")
        self.classes = tuple(classes)
        self.audio = None if audio_encoder is None else Modality(audio_encoder, layer_mix, gate)
        self.text = None if text_encoder is None else Modality(text_encoder, layer_mix, gate)
        audio_dim = None if self.audio is None else self.audio.dim
        text_dim = None if self.text is None else self.text.dim
        self.fusion = cast(Any, fusion(audio_dim, text_dim))
        self.head = head(self.fusion.dim, len(self.classes))

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> EmotionOutput:
        audio_gate = text_gate = None
        if self.audio is not None:
            audio, audio_mask, audio_gate = self.audio(audio, audio_mask)
        if self.text is not None:
            text, text_mask, text_gate = self.text(text, text_mask)
        fused = self.fusion(audio, audio_mask, text, text_mask)
        logits = self.head(fused.vector)
        return EmotionOutput(logits, fused.vector, audio_gate, text_gate, fused.audio_attention, fused.text_attention)


class Modality(nn.Module):
    """One modality up to the fusion: encoder, layer mix, gate.

    Args:
        encoder: Turns raw input into hidden states; see ``audio_encoder``.
        layer_mix: Builds the layer mix.
        gate: Builds the gate.

    Shape:
        raw or precomputed input, mask -> features ``(batch, time, dim)``, mask ``(batch, time)``,
        gate ``(batch, dim)``
    """

    def __init__(
        self,
        encoder: Any,
        layer_mix: Callable[[int, int], nn.Module],
        gate: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.layer_mix = cast(Any, layer_mix(encoder.num_layers, encoder.dim))
        self.dim: int = self.layer_mix.dim
        self.gate = gate(self.dim)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if features.ndim == 2:  # waveforms or token ids: nothing has been precomputed
            features, mask = self.encoder.precompute(features, mask)
        features, mask = self.encoder(features, mask)
        features = self.layer_mix(features)
        features, gate = self.gate(features, mask)
        return features, mask, gate
