"""Prediction heads: fused vector -> class scores, or valence, arousal and dominance."""

from __future__ import annotations

from torch import Tensor, nn

from mmemo.labels import DIMENSIONS


class ClassHead(nn.Module):
    """Scores the emotion classes.

    Args:
        input_dim: Size of the fused vector.
        num_classes: Number of classes.
        hidden_dim: Size of the hidden layer. Defaults to no hidden layer: a linear head.
        dropout: Dropout probability, in [0, 1).

    Shape:
        vector ``(batch, input_dim)`` -> logits ``(batch, num_classes)``

    Example:
        >>> import torch
        >>> ClassHead(input_dim=256, num_classes=4)(torch.randn(2, 256)).shape
        torch.Size([2, 4])
    """

    def __init__(self, input_dim: int, num_classes: int, hidden_dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = _layers(input_dim, num_classes, hidden_dim, dropout)

    def forward(self, vector: Tensor) -> Tensor:
        logits: Tensor = self.layers(vector)
        return logits


class DimensionHead(nn.Module):
    """Predicts valence, arousal and dominance.

    Args:
        input_dim: Size of the fused vector.
        hidden_dim: Size of the hidden layer. Defaults to no hidden layer: a linear head.
        dropout: Dropout probability, in [0, 1).

    Shape:
        vector ``(batch, input_dim)`` -> dimensions ``(batch, 3)`` in (-1, 1), in the order of ``labels.DIMENSIONS``

    Example:
        >>> import torch
        >>> DimensionHead(input_dim=256)(torch.randn(2, 256)).shape
        torch.Size([2, 3])
    """

    def __init__(self, input_dim: int, hidden_dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = _layers(input_dim, len(DIMENSIONS), hidden_dim, dropout)

    def forward(self, vector: Tensor) -> Tensor:
        dimensions: Tensor = self.layers(vector).tanh()
        return dimensions


class NoHead(nn.Module):
    """Returns the fused vector as the logits: the head for ``LateFusion``.

    Args:
        input_dim: Size of the fused vector.
        num_classes: Number of classes.

    Raises:
        ValueError: The vector does not have one value per class.

    Shape:
        vector ``(batch, num_classes)`` -> logits ``(batch, num_classes)``

    Example:
        >>> import torch
        >>> NoHead(input_dim=4, num_classes=4)(torch.randn(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, input_dim: int, num_classes: int) -> None:
        super().__init__()
        if input_dim != num_classes:
            raise ValueError(
                f"NoHead: the fusion returns {input_dim} values, data.classes has {num_classes} classes; "
                f"set LateFusion's num_logits: {num_classes}, or choose another head"
            )

    def forward(self, vector: Tensor) -> Tensor:
        return vector


def _layers(input_dim: int, output_dim: int, hidden_dim: int | None, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    if hidden_dim is not None:
        layers += [nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim or input_dim, output_dim))
