"""Layer mixes: hidden states of several encoder layers -> one sequence of features."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


@runtime_checkable
class WeighsLayers(Protocol):
    """A layer mix with one weight per hidden state."""

    @property
    def weights(self) -> Tensor:
        """Weight of each layer ``(layer,)``."""


class LayerMix(nn.Module):
    """Softmax-weighted sum of hidden states, as in SUPERB (Yang et al. 2021, <https://arxiv.org/abs/2105.01051>).

    Each layer is first normalised per frame, so that its weight reflects its importance and not its scale.

    Args:
        num_layers: Number of hidden states.
        input_dim: Size of their feature axis.

    Shape:
        features ``(batch, layer, time, input_dim)`` -> ``(batch, time, dim)``, dim = input_dim

    Example:
        >>> mix = LayerMix(num_layers=4, input_dim=8)
        >>> mix(torch.randn(2, 4, 50, 8)).shape
        torch.Size([2, 50, 8])
        >>> mix.weights.tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    def __init__(self, num_layers: int, input_dim: int) -> None:
        super().__init__()
        self.dim = input_dim
        self.logits = nn.Parameter(torch.zeros(num_layers))

    @property
    def weights(self) -> Tensor:
        """Weight of each layer ``(layer,)``; they sum to 1."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        features = nn.functional.layer_norm(features, features.shape[-1:])
        return einsum(features, self.weights, "batch layer time dim, layer -> batch time dim")


class LayerConcat(nn.Module):
    """Concatenates hidden states: no layer is averaged away, at the cost of a longer feature axis.

    Args:
        num_layers: Number of hidden states.
        input_dim: Size of their feature axis.

    Shape:
        features ``(batch, layer, time, input_dim)`` -> ``(batch, time, dim)``, dim = num_layers * input_dim

    Example:
        >>> LayerConcat(num_layers=4, input_dim=8)(torch.randn(2, 4, 50, 8)).shape
        torch.Size([2, 50, 32])
    """

    def __init__(self, num_layers: int, input_dim: int) -> None:
        super().__init__()
        self.dim = num_layers * input_dim

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(features, "batch layer time dim -> batch time (layer dim)")
