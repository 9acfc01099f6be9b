"""Which features count for this utterance: adaptive feature selection."""

from __future__ import annotations

from einops import rearrange, reduce
from torch import Tensor, nn


class FeatureGate(nn.Module):
    """Softly selects feature dimensions per utterance, so that noisy ones can be ignored.

    A squeeze-and-excitation gate (Hu et al. 2018, eq. 3, <https://arxiv.org/abs/1709.01507>) on the mean over
    time of the frames that are there. It starts open, close to no gate at all.

    Args:
        dim: Size of the feature axis.
        hidden_dim: Size of the bottleneck.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> gated ``(batch, time, dim)``, gate ``(batch, dim)`` in [0, 1]
    """

    def __init__(self, dim: int, hidden_dim: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.squeeze = nn.Linear(dim, hidden_dim)
        self.excite = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.excite.weight)
        nn.init.constant_(self.excite.bias, 3.0)  # sigmoid(3) = 0.95

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        mean = reduce(features * weights[..., None], "batch time dim -> batch dim", "sum")
        gate = self.excite(nn.functional.relu(self.squeeze(self.norm(mean)))).sigmoid()
        return features * rearrange(gate, "batch dim -> batch 1 dim"), gate


class NoGate(nn.Module):
    """Lets every feature through: what a gate is compared against.

    Args:
        dim: Size of the feature axis.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> the same features, gate ``(batch, dim)`` of ones
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, features.new_ones(len(features), self.dim)
