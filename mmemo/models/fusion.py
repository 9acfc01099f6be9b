"""Fusions: the sequences of several modalities -> one vector per utterance. Any modality may be missing.

A fusion is built as ``Fusion(dims)``, the feature size of each modality. It takes the sequences and their masks in that
order, and returns :class:`Fused`, with finite values whatever is masked. Its attribute ``dim`` is the size of the
vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import permutations
from typing import NamedTuple, cast

import torch
from einops import einsum, repeat
from torch import Tensor, nn

from mmemo.models.gates import ModalityGate
from mmemo.models.pooling import AttentiveStatisticsPooling, MaskedBatchNorm

BOTTLENECK = -1
"""The ``query`` of an attention map whose queries are bottleneck tokens."""


class AttentionMap(NamedTuple):
    """Attention weights between the steps of two sequences.

    Args:
        query: Index of the attending modality, in the model's order; ``BOTTLENECK`` for bottleneck tokens.
        key: Index of the attended modality.
        weights: ``(batch, query_time, key_time)``; rows sum to 1, or are zero if all keys are masked.
    """

    query: int
    key: int
    weights: Tensor


class Fused(NamedTuple):
    """The output of a fusion.

    Args:
        vector: The fused vector ``(batch, dim)``.
        weights: Weight of each modality ``(batch, modality)``; they sum to 1 over the present ones. Defaults to None,
            for a fusion without such weights.
        attention: Attention maps. Defaults to none.

    Example:
        >>> fused = Concatenation([8])([torch.randn(2, 5, 8)], [torch.ones(2, 5, dtype=torch.bool)])
        >>> fused.vector.shape, fused.weights, fused.attention
        (torch.Size([2, 16]), None, ())
    """

    vector: Tensor
    weights: Tensor | None = None
    attention: tuple[AttentionMap, ...] = ()


class PooledModalities(nn.Module):
    """Pools each modality over time and standardises the result.

    Args:
        dims: Feature size of each modality.
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> one vector ``(batch, self.dims[modality])``
        per modality, zeros if it is missing; present ``(batch, modality)`` bool
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
    """Concatenates the modalities, each pooled over time and standardised: the baseline for the other fusions.

    Args:
        dims: Feature size of each modality.
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``; a missing
        modality is zeros

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> Concatenation([8, 4])([audio, text], [audio_mask, text_mask]).vector.shape
        torch.Size([2, 24])
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
    """Scores the classes from each modality separately, then averages the scores with learned weights.

    Use it with ``head: mmemo.models.NoHead``, since its vector already holds the logits.

    Args:
        dims: Feature size of each modality.
        num_logits: Number of classes.
        dropout: Dropout probability, in [0, 1).
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, num_logits)``, zeros
        if every modality is missing; weights ``(batch, modality)``, which sum to 1 over the present modalities

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> LateFusion([8, 4], num_logits=5)([audio, text], [audio_mask, text_mask]).vector.shape
        torch.Size([2, 5])
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
    """Sums the projected modalities, weighted per utterance by a learned gate.

    Follows Arevalo et al. 2017, eq. 1 to 4, <https://arxiv.org/abs/1702.01992>.

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size of the fused vector.
        per_feature: Whether to learn one weight per feature of the fused vector, as in the paper, or one per
            modality, which is easier to interpret.
        dropout: Dropout probability, in [0, 1).
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, hidden_dim)``, zeros if
        every modality is missing; weights ``(batch, modality)``, averaged over features

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> GatedMultimodalUnit([8, 4])([audio, text], [audio_mask, text_mask]).weights.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
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
    """Multiplies the modalities' features, with low-rank factors instead of a full tensor.

    Follows Liu et al. 2018, eq. 5 and 6, <https://arxiv.org/abs/1806.00064>. A 1 is appended to each modality's vector,
    so that the products include single modalities and pairs. A missing modality contributes only that 1. Differs in a
    final layer norm, since products of many features grow large.

    Args:
        dims: Feature size of each modality.
        output_dim: Size of the fused vector.
        rank: Rank of the factors.
        dropout: Dropout probability, in [0, 1).
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, output_dim)``

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> LowRankFusion([8, 4])([audio, text], [audio_mask, text_mask]).vector.shape
        torch.Size([2, 128])
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
            initial[:, -1] = 1.0  # products start near 1, so that no modality suppresses another
            self.factors.append(nn.Parameter(initial))
        self.rank_weights = nn.Parameter(torch.randn(rank) / math.sqrt(rank))
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Fused:
        vectors, _ = self.pooled(features, masks)
        projections = []
        for vector, factors in zip(vectors, self.factors, strict=True):
            with_one = torch.cat([self.dropout(vector), vector.new_ones(vector.shape[0], 1)], dim=-1)
            projections.append(einsum(with_one, factors, "batch dim, rank dim output -> batch rank output"))
        product = reduce(torch.mul, projections)
        return Fused(self.norm(einsum(product, self.rank_weights, "batch rank output, rank -> batch output")))


class CrossModalAttention(nn.Module):
    """Each modality attends to every other one, then each is pooled over time.

    The directional cross-modal blocks of Tsai et al. 2019 (MulT, section 3.2, <https://arxiv.org/abs/1906.00295>), one
    layer deep. A missing modality leaves the features of the others unchanged. Differs in having no feed-forward layer
    and no positional encoding (the features already encode it), and in summing the contexts from several modalities.

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size that each modality is projected to.
        num_heads: Number of attention heads; must divide ``hidden_dim``.
        dropout: Dropout probability, in [0, 1).
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``; one attention map for
        each ordered pair of modalities

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> CrossModalAttention([8, 4])([audio, text], [audio_mask, text_mask]).attention[0].weights.shape
        torch.Size([2, 50, 6])
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
    """Lets one sequence attend to another.

    Args:
        dim: Size of the feature axis.
        num_heads: Number of attention heads; must divide ``dim``.
        dropout: Dropout probability, in [0, 1).

    Shape:
        query ``(batch, query_time, dim)``, key ``(batch, key_time, dim)``, key_mask ``(batch, key_time)`` bool
        -> context ``(batch, query_time, dim)`` to be added to the query, attention
        ``(batch, query_time, key_time)``; both zero if every key is masked
    """

    def __init__(self, dim: int, num_heads: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
        present = key_mask.any(1)[:, None, None]  # (batch, 1, 1)
        attended = key_mask | ~key_mask.any(1, keepdim=True)  # attention to no key at all would give NaN
        key = self.key_norm(key)
        context, attention = self.attention(
            self.query_norm(query), key, key, key_padding_mask=~attended, average_attn_weights=True
        )
        return self.dropout(context) * present, attention * present


class AttentionBottleneck(nn.Module):
    """Exchanges information between modalities only through a few bottleneck tokens.

    Follows Nagrani et al. 2021 (MBT, section 3.2, eq. 8 and 9, <https://arxiv.org/abs/2107.00135>). In every layer each
    modality attends to itself and to the bottleneck tokens, whose new states are averaged over the present modalities.
    The fused vector concatenates the pooled modalities and the mean token.

    Args:
        dims: Feature size of each modality.
        hidden_dim: Size that each modality is projected to.
        num_heads: Number of attention heads; must divide ``hidden_dim``.
        num_layers: Number of transformer layers.
        num_tokens: Number of bottleneck tokens.
        dropout: Dropout probability, in [0, 1).
        pooling: Builds a modality's pooling from its feature size.

    Shape:
        one ``(batch, time, dims[modality])`` and mask per modality -> vector ``(batch, dim)``; for each modality an
        attention map ``(batch, num_tokens, time)`` of the tokens over its steps in the last layer

    Example:
        >>> audio, audio_mask = torch.randn(2, 50, 8), torch.ones(2, 50, dtype=torch.bool)
        >>> text, text_mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
        >>> AttentionBottleneck([8, 4])([audio, text], [audio_mask, text_mask]).attention[0].weights.shape
        torch.Size([2, 4, 50])
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
            updates, maps = [], []
            for index, self_attention in enumerate(cast(nn.ModuleList, layer)):
                joined = torch.cat([tokens, sequences[index]], dim=1)
                joined_mask = torch.cat([masks[index].new_ones(present.shape[0], num_tokens), masks[index]], dim=1)
                joined, attention = self_attention(joined, joined_mask)
                updates.append(joined[:, :num_tokens])
                sequences[index] = joined[:, num_tokens:]
                weights = attention[:, :num_tokens, num_tokens:]
                maps.append(AttentionMap(BOTTLENECK, index, weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)))
            tokens = einsum(
                torch.stack(updates, dim=1), shares, "batch modality token dim, batch modality -> batch token dim"
            )
        vectors, _ = self.pooled(sequences, masks)
        return Fused(torch.cat([*vectors, tokens.mean(1)], dim=-1), attention=tuple(maps))


class SelfAttentionLayer(nn.Module):
    """A pre-norm transformer layer that also returns its attention weights.

    Follows Xiong et al. 2020, <https://arxiv.org/abs/2002.04745>.

    Args:
        dim: Size of the feature axis.
        num_heads: Number of attention heads; must divide ``dim``.
        dropout: Dropout probability, in [0, 1).

    Shape:
        ``(batch, time, dim)``, mask ``(batch, time)`` bool with at least one real step
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
