"""A linear layer as the product of two narrow ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer factored into two narrow ones, fitted to its first training batch.

    Args:
        linear: Layer to replace.
        rank: Size of the layer between the two.

    Shape:
        ``(..., in_features)`` -> ``(..., out_features)``

    Example:
        >>> layer = LowRankLinear(nn.Linear(64, 32), rank=4)
        >>> layer(torch.randn(10, 64)).shape, sum(parameter.numel() for parameter in layer.parameters())
        (torch.Size([10, 32]), 416)
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(linear.in_features, rank, bias=False)
        self.widen = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
        if linear.bias is not None:
            self.widen.bias.data.copy_(linear.bias.data)
        self.whole: Tensor
        self.fitted: Tensor
        self.register_buffer("whole", linear.weight.data.clone(), persistent=False)
        self.register_buffer("fitted", torch.tensor(False))

    @classmethod
    def factored(cls, linear: nn.Linear, rank: int) -> nn.Module:
        """Returns the factored layer, or the layer itself if factors would not be smaller."""
        is_smaller = rank * (linear.in_features + linear.out_features) < linear.weight.numel()
        return cls(linear, rank) if is_smaller else linear

    @property
    def product(self) -> nn.Linear:
        """An ordinary linear layer that computes the same."""
        linear = nn.Linear(self.narrow.in_features, self.widen.out_features, bias=self.widen.bias is not None)
        linear.weight.data = self.widen.weight.data @ self.narrow.weight.data
        if self.widen.bias is not None:
            linear.bias.data = self.widen.bias.data
        return linear

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not self.fitted:
            self.fit(inputs.detach())
        return self.widen(self.narrow(inputs))

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Fits the factors so that their outputs for these inputs are closest to the original layer's.

        Args:
            inputs: ``(..., in_features)``.
        """
        rows = inputs.flatten(0, -2).double()
        second_moment = rows.T @ rows
        scale = second_moment.diagonal().mean().clamp(min=1e-12)
        second_moment = second_moment / scale + 1e-4 * torch.eye(len(second_moment), device=rows.device)
        values, vectors = torch.linalg.eigh(second_moment)  # with fewer rows than features, some are 1e-4
        root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        left, singular, right = torch.linalg.svd(self.whole.double() @ root, full_matrices=False)
        rank = self.narrow.out_features
        share = singular[:rank].sqrt()
        self.widen.weight.copy_(left[:, :rank] * share)
        self.narrow.weight.copy_(share[:, None] * right[:rank] @ inverse)
        self.fitted.fill_(True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # each process has another batch
            for tensor in (self.widen.weight, self.narrow.weight):
                torch.distributed.broadcast(tensor, 0)


def replace_modules(
    module: nn.Module, kind: type[nn.Module], other: Callable[[Any], nn.Module], names: Sequence[str] | None = None
) -> None:
    """Replaces every module of a kind, at any depth; with ``names``, only modules of these names."""
    for name, child in module.named_children():
        if not isinstance(child, kind):
            replace_modules(child, kind, other, names)
        elif not names or name in names:
            setattr(module, name, other(child))
