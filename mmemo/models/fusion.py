"""Voice and words -> one vector per utterance; either may be missing.

A fusion is built as ``Fusion(audio_dim, text_dim)``, where None says that the model has no such modality. It
takes both sequences with their masks, says in ``dim`` how long its vector is, and gives finite numbers
whatever is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmemo.models.pooling import AttentiveStatisticsPooling, MaskedBatchNorm


class Fused(NamedTuple):
    """What a fusion gives.

    Args:
        vector: Both modalities in one ``(batch, dim)``.
        audio_attention: How much each audio frame attends to each token ``(batch, audio_time, text_time)``;
            None where the fusion has no such map.
        text_attention: How much each token attends to each audio frame ``(batch, text_time, audio_time)``.
    """

    vector: Tensor
    audio_attention: Tensor | None = None
    text_attention: Tensor | None = None


class Concatenation(nn.Module):
    """Each modality pooled over time and standardised, side by side: the baseline a fusion must beat.

    Args:
        audio_dim: Size of the audio features; None without audio.
        text_dim: Size of the text features; None without text.
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        audio ``(batch, audio_time, audio_dim)``, text ``(batch, text_time, text_dim)`` with masks
        -> vector ``(batch, dim)``; a missing modality is zeros
    """

    def __init__(
        self,
        audio_dim: int | None,
        text_dim: int | None,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.audio_pooling = None if audio_dim is None else cast(Any, pooling(audio_dim))
        self.text_pooling = None if text_dim is None else cast(Any, pooling(text_dim))
        poolings = [part for part in (self.audio_pooling, self.text_pooling) if part is not None]
        self.audio_norm = None if self.audio_pooling is None else MaskedBatchNorm(self.audio_pooling.dim)
        self.text_norm = None if self.text_pooling is None else MaskedBatchNorm(self.text_pooling.dim)
        self.dim: int = sum(part.dim for part in poolings)

    def forward(
        self, audio: Tensor | None, audio_mask: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> Fused:
        vectors = []
        if self.audio_pooling is not None and self.audio_norm is not None:
            assert audio is not None
            assert audio_mask is not None
            vectors.append(self.audio_norm(self.audio_pooling(audio, audio_mask), audio_mask.any(1)))
        if self.text_pooling is not None and self.text_norm is not None:
            assert text is not None
            assert text_mask is not None
            vectors.append(self.text_norm(self.text_pooling(text, text_mask), text_mask.any(1)))
        return Fused(torch.cat(vectors, dim=-1))


class CrossModalAttention(nn.Module):
    """Frames attend to words and words to frames, then each is pooled over time.

    The two-way cross-modal block of Tsai et al. 2019 (MulT, section 3.2, <https://arxiv.org/abs/1906.00295>), one
    layer deep. A missing modality adds nothing to the other, whose features pass unchanged.

    Args:
        audio_dim: Size of the audio features; None without audio.
        text_dim: Size of the text features; None without text.
        hidden_dim: Size both are projected to.
        num_heads: Attention heads.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        audio ``(batch, audio_time, audio_dim)``, text ``(batch, text_time, text_dim)`` with masks
        -> vector ``(batch, dim)``; a missing modality is zeros
    """

    def __init__(
        self,
        audio_dim: int | None,
        text_dim: int | None,
        hidden_dim: int = 128,
        num_heads: int = 4,
        dropout: float = 0.2,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.audio_projection = None if audio_dim is None else _projection(audio_dim, hidden_dim, dropout)
        self.text_projection = None if text_dim is None else _projection(text_dim, hidden_dim, dropout)
        self.pooling = Concatenation(
            None if audio_dim is None else hidden_dim, None if text_dim is None else hidden_dim, pooling
        )
        self.dim = self.pooling.dim
        both = audio_dim is not None and text_dim is not None
        self.audio_to_text = CrossAttention(hidden_dim, num_heads, dropout) if both else None
        self.text_to_audio = CrossAttention(hidden_dim, num_heads, dropout) if both else None

    def forward(
        self, audio: Tensor | None, audio_mask: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> Fused:
        audio_attention = text_attention = None
        if self.audio_projection is not None:
            audio = self.audio_projection(audio)
        if self.text_projection is not None:
            text = self.text_projection(text)
        if self.audio_to_text is not None and self.text_to_audio is not None:
            heard, read = audio, text
            audio, audio_attention = self.audio_to_text(heard, read, text_mask)
            text, text_attention = self.text_to_audio(read, heard, audio_mask)
        vector = self.pooling(audio, audio_mask, text, text_mask).vector
        return Fused(vector, audio_attention, text_attention)


class CrossAttention(nn.Module):
    """One sequence attends to another, with a residual connection around it.

    Args:
        dim: Size of the feature axis.
        num_heads: Attention heads; must divide ``dim``.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        query ``(batch, query_time, dim)``, key ``(batch, key_time, dim)``, key_mask ``(batch, key_time)`` bool
        -> ``(batch, query_time, dim)``, attention ``(batch, query_time, key_time)``; where every key is
        masked, the query itself and an attention of zeros
    """

    def __init__(self, dim: int, num_heads: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
        present = key_mask.any(1)[:, None, None]  # (batch, 1, 1)
        attended = key_mask | ~key_mask.any(1, keepdim=True)  # a row without keys would give NaN
        key = self.key_norm(key)
        context, attention = self.attention(
            self.query_norm(query), key, key, key_padding_mask=~attended, average_attn_weights=True
        )
        return query + self.dropout(context) * present, attention * present


def _projection(input_dim: int, dim: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(input_dim), nn.Dropout(dropout), nn.Linear(input_dim, dim))
