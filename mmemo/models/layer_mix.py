"""Hidden states of several layers -> one sequence of features."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


class LayerMix(nn.Module):
    """Softmax-weighted sum of hidden states, as in SUPERB (Yang et al. 2021, <https://arxiv.org/abs/2105.01051>).

    Each layer is first normalised per frame, so that a weight says how much a layer matters and not how
    loud it is.

    Args:
        num_layers: Number of hidden states.
        input_dim: Size of their feature axis.

    Shape:
        features ``(batch, layer, time, input_dim)`` -> ``(batch, time, dim)``, dim = input_dim
    """

    def __init__(self, num_layers: int, input_dim: int) -> None:
        super().__init__()
        self.dim = input_dim
        self.logits = nn.Parameter(torch.zeros(num_layers))

    @property
    def weights(self) -> Tensor:
        """Share of each layer ``(layer,)``, summing to 1."""
        return self.logits.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        features = nn.functional.layer_norm(features, features.shape[-1:])
        return einsum(features, self.weights, "batch layer time dim, layer -> batch time dim")


class LayerConcat(nn.Module):
    """Hidden states side by side: nothing is averaged away, at the price of a longer feature axis.

    Args:
        num_layers: Number of hidden states.
        input_dim: Size of their feature axis.

    Shape:
        features ``(batch, layer, time, input_dim)`` -> ``(batch, time, dim)``, dim = num_layers * input_dim
    """

    def __init__(self, num_layers: int, input_dim: int) -> None:
        super().__init__()
        self.dim = num_layers * input_dim

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(features, "batch layer time dim -> batch time (layer dim)")
