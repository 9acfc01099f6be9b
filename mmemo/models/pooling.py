"""Sequence -> one vector: mean and standard deviation over time, weighted by attention where asked."""

from __future__ import annotations

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn


def weighted_statistics(features: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation over time.

    Shape:
        features ``(batch, time, dim)``, weights ``(batch, time, dim or 1)`` summing to 1 over time, or all
        zero -> ``(batch, 2 * dim)``; zeros where the weights are
    """
    features = features.float()  # under mixed precision too: a variance needs the digits
    mean = (weights * features).sum(1)
    variance = (weights * (features - mean[:, None]).square()).sum(1)
    return torch.cat([mean, (variance + 1e-6).sqrt() * (variance > 0)], dim=-1)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time, every frame alike (Snyder et al. 2018, x-vectors).

    Args:
        input_dim: Size of the feature axis.

    Shape:
        features ``(batch, time, input_dim)``, mask ``(batch, time)`` bool -> ``(batch, dim)``,
        dim = 2 * input_dim; zeros where everything is masked
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.dim = 2 * input_dim

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return weighted_statistics(features, weights[..., None])


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over time, weighted by attention (Okabe et al. 2018, eq. 3 to 6,
    <https://arxiv.org/abs/1803.10963>).

    Args:
        input_dim: Size of the feature axis.
        hidden_dim: Size of the attention's hidden layer.

    Shape:
        features ``(batch, time, input_dim)``, mask ``(batch, time)`` bool -> ``(batch, dim)``,
        dim = 2 * input_dim; zeros where everything is masked
    """

    def __init__(self, input_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.dim = 2 * input_dim
        self.norm = nn.LayerNorm(input_dim)
        last = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(last.weight)  # starts as the plain mean and deviation
        self.score = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.Tanh(), last)

    def attention(self, features: Tensor, mask: Tensor) -> Tensor:
        """Share of each frame ``(batch, time)``, summing to 1 over the unmasked ones."""
        scores = rearrange(self.score(self.norm(features)), "batch time 1 -> batch time")
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # -inf would give NaN if all are masked
        return scores.softmax(1) * mask

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return weighted_statistics(features, self.attention(features, mask)[..., None])


class MaskedBatchNorm(nn.Module):
    """Standardises features by the training set's mean and deviation; what is absent stays zero.

    Batch statistics (Ioffe and Szegedy 2015) are taken over what is present alone, of all
    processes together. A batch with fewer than two of them is normalised by the running statistics.

    Args:
        dim: Size of the feature axis.
        momentum: Weight of a batch in the running statistics, in (0, 1].
        eps: Added to the variance.
        affine: Whether what is normalised is scaled and shifted by trained weights.

    Shape:
        features ``(batch, dim, ...)``, present ``(batch, ...)`` bool, where a size of 1 stands for all places
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
            others = [axis for axis in range(features.ndim) if axis != 1]
            weight = present.to(features.dtype)
            count = _over_processes(weight.sum() * (features[:, :1].numel() / present.numel()))
            batch_mean = _over_processes((weight * features).sum(others)) / count.clamp(min=1)
            squares = (weight * (features - _like(batch_mean, features))).square()
            batch_var = _over_processes(squares.sum(others)) / count.clamp(min=1)
            if count > 1:
                with torch.no_grad():
                    self.running_mean.lerp_(batch_mean, self.momentum)
                    self.running_var.lerp_(batch_var * count / (count - 1), self.momentum)
                mean, variance = batch_mean, batch_var
        rate = (variance + self.eps).rsqrt()
        if self.weight is not None:
            rate = rate * self.weight
        shift = -mean * rate
        if self.bias is not None:
            shift = shift + self.bias
        # where(), not indexing: a batch without this modality must still reach every parameter, or DDP waits
        normal = torch.addcmul(_like(shift, features), features, _like(rate, features))
        return torch.where(present, normal, 0.0)


def _like(statistic: Tensor, features: Tensor) -> Tensor:
    """``(dim,)`` -> ``(dim, 1, ...)``, to be broadcast over features."""
    return statistic.reshape(-1, *[1] * (features.ndim - 2))


def _over_processes(total: Tensor) -> Tensor:
    """Sum over the processes of distributed training, with gradients."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return total
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(total)
