"""Pooling: a sequence -> one vector, by statistics over time; and batch norm for masked features."""

from __future__ import annotations

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn


def weighted_statistics(features: Tensor, weights: Tensor) -> Tensor:
    """Computes the weighted mean and standard deviation over time.

    Shape:
        features ``(batch, time, dim)``, weights ``(batch, time, dim or 1)``, which sum to 1 over time or are all
        zero -> ``(batch, 2 * dim)``; zeros if the weights are zero
    """
    features = features.float()  # also under mixed precision: half precision is too coarse for a variance
    mean = (weights * features).sum(1)
    variance = (weights * (features - mean[:, None]).square()).sum(1)
    return torch.cat([mean, (variance + 1e-6).sqrt() * (variance > 0)], dim=-1)


class MeanPooling(nn.Module):
    """Mean over time.

    Args:
        input_dim: Size of the feature axis.

    Shape:
        features ``(batch, time, input_dim)``, mask ``(batch, time)`` bool -> ``(batch, input_dim)``; zeros if every
        frame is masked

    Example:
        >>> MeanPooling(input_dim=8)(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.dim = input_dim

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return (weights[..., None] * features).sum(1)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time with equal weights (Snyder et al. 2018, x-vectors).

    Args:
        input_dim: Size of the feature axis.

    Shape:
        features ``(batch, time, input_dim)``, mask ``(batch, time)`` bool -> ``(batch, dim)``,
        dim = 2 * input_dim; zeros if every frame is masked

    Example:
        >>> StatisticsPooling(input_dim=8)(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 16])
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.dim = 2 * input_dim

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return weighted_statistics(features, weights[..., None])


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over time, weighted by attention.

    Follows Okabe et al. 2018, eq. 3 to 6, <https://arxiv.org/abs/1803.10963>.

    Args:
        input_dim: Size of the feature axis.
        hidden_dim: Size of the attention's hidden layer.

    Shape:
        features ``(batch, time, input_dim)``, mask ``(batch, time)`` bool -> ``(batch, dim)``,
        dim = 2 * input_dim; zeros if every frame is masked

    Example:
        >>> pooling = AttentiveStatisticsPooling(input_dim=8)
        >>> features, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
        >>> pooling(features, mask).shape
        torch.Size([2, 16])
        >>> pooling.attention(features, mask).shape
        torch.Size([2, 5])
    """

    def __init__(self, input_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.dim = 2 * input_dim
        self.norm = nn.LayerNorm(input_dim)
        last = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(last.weight)  # attention starts uniform
        self.score = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.Tanh(), last)

    def attention(self, features: Tensor, mask: Tensor) -> Tensor:
        """Computes the attention weight of each frame ``(batch, time)``; they sum to 1 over the real frames."""
        scores = rearrange(self.score(self.norm(features)), "batch time 1 -> batch time")
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # -inf would give NaN if all are masked
        weights: Tensor = scores.softmax(1) * mask
        return weights

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return weighted_statistics(features, self.attention(features, mask)[..., None])


class MaskedBatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015) that ignores absent features and keeps them at zero.

    Batch statistics are taken over the present features only, of all processes together. A training batch with fewer
    than two present features per channel is normalised by the running statistics.

    Args:
        dim: Size of the feature axis.
        momentum: Weight of a batch in the running statistics, in (0, 1].
        eps: Added to the variance, above 0.
        affine: Whether to learn a scale and a shift.

    Shape:
        features ``(batch, dim, ...)``, present ``(batch, ...)`` bool, whose axes of size 1 are broadcast
        -> ``(batch, dim, ...)``
    """

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        features = features.float()
        present = present[:, None]
        mean, variance = self.running_mean, self.running_var
        if self.training:
            reduced_axes = [axis for axis in range(features.ndim) if axis != 1]
            weights = present.to(features.dtype)
            count = _sum_over_processes(weights.sum() * (features[:, :1].numel() / present.numel()))
            batch_mean = _sum_over_processes((weights * features).sum(reduced_axes)) / count.clamp(min=1)
            squares = (weights * (features - _broadcast(batch_mean, features))).square()
            batch_var = _sum_over_processes(squares.sum(reduced_axes)) / count.clamp(min=1)
            if count > 1:
                with torch.no_grad():
                    self.running_mean.lerp_(batch_mean, self.momentum)
                    self.running_var.lerp_(batch_var * count / (count - 1), self.momentum)
                mean, variance = batch_mean, batch_var
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        # where(), not indexing: every parameter needs a gradient even if the modality is absent, or DDP waits for it
        normalised = torch.addcmul(_broadcast(shift, features), features, _broadcast(scale, features))
        return torch.where(present, normalised, 0.0)


def _broadcast(statistic: Tensor, features: Tensor) -> Tensor:
    """``(dim,)`` -> ``(dim, 1, ...)``, which broadcasts over ``features``."""
    return statistic.reshape(-1, *[1] * (features.ndim - 2))


def _sum_over_processes(total: Tensor) -> Tensor:
    """Sums over the processes of distributed training, with gradients."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return total
    from torch.distributed.nn.functional import all_reduce

    reduced: Tensor = all_reduce(total)
    return reduced
