"""Several modalities -> one vector per utterance; any of them may be missing.

A fusion is built as ``Fusion(dims)``, the feature size of each modality. It takes their sequences and masks in that
order, says in ``dim`` how long its vector is, and gives finite numbers whatever is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, NamedTuple, cast

import torch
from einops import einsum, repeat
from torch import Tensor, nn

from mmemo.models.gates import ModalityGate
from mmemo.models.pooling import AttentiveStatisticsPooling, MaskedBatchNorm

BOTTLENECK = -1
"""Stands for the bottleneck tokens as the query of an attention map."""


class AttentionMap(NamedTuple):
    """How much each step of one sequence attends to each step of another.

    Args:
        query: Number of the modality that attends, in the model's order; ``BOTTLENECK`` for bottleneck tokens.
        key: Number of the modality attended to.
        weights: ``(batch, query_time, key_time)``; rows sum to 1, or are zero where all keys are masked.
    """

    query: int
    key: int
    weights: Tensor


class Fused(NamedTuple):
    """What a fusion gives.

    Args:
        vector: All modalities in one ``(batch, dim)``.
        weights: How far each modality was believed ``(batch, modality)``, summing to 1 over those present; None
            for a fusion that does not weigh them.
        attention: Attention maps; empty for a fusion that has none.
    """

    vector: Tensor
    weights: Tensor | None = None
    attention: tuple[AttentionMap, ...] = ()


class PooledModalities(nn.Module):
    """Each modality pooled over time and standardised.

    Args:
        dims: Feature size of each modality.
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> one vector ``(batch, self.dims[modality])``
        per modality, zeros where it is missing; present ``(batch, modality)`` bool
    """

    def __init__(self, dims: Sequence[int], pooling: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.poolings = nn.ModuleList(pooling(dim) for dim in dims)
        self.dims = [cast(int, part.dim) for part in self.poolings]
        self.norms = nn.ModuleList(MaskedBatchNorm(dim) for dim in self.dims)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        parts = zip(self.norms, self.poolings, features, masks, strict=True)
        vectors = [norm(pooling(sequence, mask), mask.any(1)) for norm, pooling, sequence, mask in parts]
        return vectors, torch.stack([mask.any(1) for mask in masks], dim=1)


class Concatenation(nn.Module):
    """Each modality pooled over time and standardised, side by side: the baseline a fusion must beat.

    Args:
        dims: Feature size of each modality.
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``; a missing
        modality is zeros
    """

    def __init__(
        self, dims: Sequence[int], pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling
    ) -> None:  # fmt: skip
        super().__init__()
        self.pooled = PooledModalities(dims, pooling)
        self.dim = sum(self.pooled.dims)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        vectors, _ = self.pooled(features, masks)
        return Fused(torch.cat(vectors, dim=-1))


class LateFusion(nn.Module):
    """Each modality scores the classes alone; learned weights average the scores of those that are there.

    Use it with ``head: mmemo.models.NoHead``, since its vector is the logits already.

    Args:
        dims: Feature size of each modality.
        num_logits: Number of classes.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, num_logits)``, zeros
        where every modality is missing; weights ``(batch, modality)``
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_logits: int,
        dropout: float = 0.5,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.pooled = PooledModalities(dims, pooling)
        self.dim = num_logits
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_logits)) for dim in self.pooled.dims
        )
        self.weights = nn.Parameter(torch.zeros(len(dims)))

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        vectors, present = self.pooled(features, masks)
        scores = [score(vector) for score, vector in zip(self.scores, vectors, strict=True)]
        lowest = torch.finfo(self.weights.dtype).min
        weights = torch.where(present, self.weights, lowest).softmax(1) * present
        logits = einsum(torch.stack(scores, 1), weights, "batch modality dim, batch modality -> batch dim")
        return Fused(logits, weights)


class GatedMultimodalUnit(nn.Module):
    """Believes each modality as far as a gate says, per utterance (Arevalo et al. 2017, eq. 1 to 4,
    <https://arxiv.org/abs/1702.01992>).

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size of the fused vector.
        per_feature: One weight for each feature of the fused vector, as in the paper; else one for each
            modality, which is easier to read.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, hidden_dim)``, zeros where
        every modality is missing; weights ``(batch, modality)``, averaged over features
    """

    def __init__(
        self,
        dims: Sequence[int],
        hidden_dim: int = 128,
        per_feature: bool = True,
        dropout: float = 0.2,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.pooled = PooledModalities(dims, pooling)
        self.dim = hidden_dim
        self.project = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, hidden_dim), nn.Tanh()) for dim in self.pooled.dims
        )
        self.gate = ModalityGate(self.pooled.dims, hidden_dim if per_feature else 1, dropout)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        vectors, present = self.pooled(features, masks)
        weights = self.gate(vectors, present)  # (batch, modality, dim or 1)
        projected = [project(vector) for project, vector in zip(self.project, vectors, strict=True)]
        return Fused((weights * torch.stack(projected, dim=1)).sum(1), weights.mean(-1))


class LowRankFusion(nn.Module):
    """Products of all modalities' features, through factors of low rank instead of a full tensor (Liu et al. 2018,
    eq. 5 and 6, <https://arxiv.org/abs/1806.00064>).

    Each modality's vector ends in a 1, so that single modalities and pairs have their say beside the product of all;
    a missing modality is that 1 alone. Differs in a layer norm at the end, since products of many features grow.

    Args:
        dims: Feature size of each modality.
        output_dim: Size of the fused vector.
        rank: Number of factors.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, output_dim)``
    """

    def __init__(
        self,
        dims: Sequence[int],
        output_dim: int = 128,
        rank: int = 4,
        dropout: float = 0.2,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.pooled = PooledModalities(dims, pooling)
        self.dim = output_dim
        self.dropout = nn.Dropout(dropout)
        self.factors = nn.ParameterList()
        for dim in self.pooled.dims:
            initial = torch.randn(rank, dim + 1, output_dim) / math.sqrt(dim)
            initial[:, -1] = 1.0  # products start near 1, so no modality silences another
            self.factors.append(nn.Parameter(initial))
        self.rank_weights = nn.Parameter(torch.randn(rank) / math.sqrt(rank))
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        vectors, _ = self.pooled(features, masks)
        product: Any = 1.0
        for vector, factors in zip(vectors, self.factors, strict=True):
            with_one = torch.cat([self.dropout(vector), vector.new_ones(vector.shape[0], 1)], dim=-1)
            product = product * einsum(with_one, factors, "batch dim, rank dim output -> batch rank output")
        return Fused(self.norm(einsum(product, self.rank_weights, "batch rank output, rank -> batch output")))


class CrossModalAttention(nn.Module):
    """Frames attend to words and words to frames, then each is pooled over time.

    The directional cross-modal blocks of Tsai et al. 2019 (MulT, section 3.2, <https://arxiv.org/abs/1906.00295>), one
    layer deep. A missing modality adds nothing to the others, whose features pass unchanged. Differs in having neither
    feed-forward layer nor positions (the encoders' features have theirs), and in adding up what several give.

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size all are projected to.
        num_heads: Attention heads.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``, a missing modality
        is zeros; one attention map for each ordered pair of modalities
    """

    def __init__(
        self,
        dims: Sequence[int],
        hidden_dim: int = 128,
        num_heads: int = 4,
        dropout: float = 0.2,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(_projection(dim, hidden_dim, dropout) for dim in dims)
        self.pairs = list(permutations(range(len(dims)), 2))  # (query, key)
        self.attention = nn.ModuleList(CrossAttention(hidden_dim, num_heads, dropout) for _ in self.pairs)
        self.pooled = PooledModalities([hidden_dim] * len(dims), pooling)
        self.dim = sum(self.pooled.dims)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        before = [project(sequence) for project, sequence in zip(self.project, features, strict=True)]
        after = list(before)
        maps = []
        for (query, key), attention in zip(self.pairs, self.attention, strict=True):
            context, weights = attention(before[query], before[key], masks[key])
            after[query] = after[query] + context
            maps.append(AttentionMap(query, key, weights))
        vectors, _ = self.pooled(after, masks)
        return Fused(torch.cat(vectors, dim=-1), attention=tuple(maps))


class CrossAttention(nn.Module):
    """What one sequence takes from another.

    Args:
        dim: Size of the feature axis.
        num_heads: Attention heads; must divide ``dim``.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        query ``(batch, query_time, dim)``, key ``(batch, key_time, dim)``, key_mask ``(batch, key_time)`` bool
        -> context ``(batch, query_time, dim)`` to be added to the query, attention
        ``(batch, query_time, key_time)``; both zero where every key is masked
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
        return self.dropout(context) * present, attention * present


class AttentionBottleneck(nn.Module):
    """Modalities talk only through a few tokens that each of them reads and writes in turn.

    Follows Nagrani et al. 2021 (MBT, section 3.2, eq. 8 and 9, <https://arxiv.org/abs/2107.00135>): in every layer each
    modality attends to itself and to the bottleneck tokens; their new states are averaged over the modalities
    that are there. The vector is the pooled modalities and the mean token.

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size all are projected to.
        num_heads: Attention heads.
        num_layers: Transformer layers.
        num_tokens: Bottleneck tokens.
        dropout: Share of features dropped in training, in [0, 1).
        pooling: Builds the pooling of one modality from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``; an attention map
        ``(batch, num_tokens, time)`` for each modality: what the tokens read of it in the last layer
    """

    def __init__(
        self,
        dims: Sequence[int],
        hidden_dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        num_tokens: int = 4,
        dropout: float = 0.2,
        pooling: Callable[[int], nn.Module] = AttentiveStatisticsPooling,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(_projection(dim, hidden_dim, dropout) for dim in dims)
        self.tokens = nn.Parameter(torch.randn(num_tokens, hidden_dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(SelfAttentionLayer(hidden_dim, num_heads, dropout) for _ in dims) for _ in range(num_layers)
        )
        self.pooled = PooledModalities([hidden_dim] * len(dims), pooling)
        self.dim = sum(self.pooled.dims) + hidden_dim

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        sequences = [project(sequence) for project, sequence in zip(self.project, features, strict=True)]
        present = torch.stack([mask.any(1) for mask in masks], dim=1)  # (batch, modality)
        shares = present / present.sum(1, keepdim=True).clamp(min=1)
        tokens: Tensor = repeat(self.tokens, "token dim -> batch token dim", batch=present.shape[0])
        num_tokens = tokens.shape[1]
        maps: list[AttentionMap] = []
        for layer in self.layers:
            written, maps = [], []
            for number, part in enumerate(cast(nn.ModuleList, layer)):
                joined = torch.cat([tokens, sequences[number]], dim=1)
                joined_mask = torch.cat([masks[number].new_ones(present.shape[0], num_tokens), masks[number]], dim=1)
                joined, attention = part(joined, joined_mask)
                written.append(joined[:, :num_tokens])
                sequences[number] = joined[:, num_tokens:]
                read = attention[:, :num_tokens, num_tokens:]
                maps.append(AttentionMap(BOTTLENECK, number, read / read.sum(-1, keepdim=True).clamp(min=1e-9)))
            tokens = einsum(
                torch.stack(written, dim=1), shares, "batch modality token dim, batch modality -> batch token dim"
            )
        vectors, _ = self.pooled(sequences, masks)
        return Fused(torch.cat([*vectors, tokens.mean(1)], dim=-1), attention=tuple(maps))


class SelfAttentionLayer(nn.Module):
    """A pre-norm transformer layer that gives its attention away (Xiong et al. 2020,
    <https://arxiv.org/abs/2002.04745>).

    Args:
        dim: Size of the feature axis.
        num_heads: Attention heads; must divide ``dim``.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        ``(batch, time, dim)``, mask ``(batch, time)`` bool with one real step at least
        -> ``(batch, time, dim)``, attention ``(batch, time, time)``
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(sequence)
        context, attention = self.attention(
            normed, normed, normed, key_padding_mask=~mask, average_attn_weights=True
        )  # fmt: skip
        sequence = sequence + self.dropout(context)
        return sequence + self.dropout(self.feed_forward(sequence)), attention


def _projection(input_dim: int, dim: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(input_dim), nn.Dropout(dropout), nn.Linear(input_dim, dim))
