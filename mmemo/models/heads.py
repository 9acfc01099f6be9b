"""One vector per utterance -> what is predicted of it."""

from __future__ import annotations

from torch import Tensor, nn

from mmemo.labels import DIMENSIONS


class ClassHead(nn.Module):
    """Scores of the emotion classes.

    Args:
        input_dim: Size of the fused vector.
        num_classes: Number of classes.
        hidden_dim: Size of a hidden layer; none gives a linear head.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        vector ``(batch, input_dim)`` -> logits ``(batch, num_classes)``
    """

    def __init__(self, input_dim: int, num_classes: int, hidden_dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = _layers(input_dim, num_classes, hidden_dim, dropout)

    def forward(self, vector: Tensor) -> Tensor:
        return self.layers(vector)


class DimensionHead(nn.Module):
    """Valence, arousal and dominance.

    Args:
        input_dim: Size of the fused vector.
        hidden_dim: Size of a hidden layer; none gives a linear head.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        vector ``(batch, input_dim)`` -> dimensions ``(batch, 3)`` in (-1, 1), in the order of
        ``labels.DIMENSIONS``
    """

    def __init__(self, input_dim: int, hidden_dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = _layers(input_dim, len(DIMENSIONS), hidden_dim, dropout)

    def forward(self, vector: Tensor) -> Tensor:
        return self.layers(vector).tanh()


class NoHead(nn.Module):
    """Takes the fused vector for the logits: the head of ``LateFusion``.

    Args:
        input_dim: Size of the fused vector.
        num_classes: Number of classes.

    Raises:
        ValueError: The vector is not one number per class.

    Shape:
        vector ``(batch, num_classes)`` -> logits ``(batch, num_classes)``
    """

    def __init__(self, input_dim: int, num_classes: int) -> None:
        super().__init__()
        if input_dim != num_classes:
            raise ValueError(
                f"NoHead: the fusion gives {input_dim} numbers, data.classes names {num_classes} classes; "
                f"set fusion LateFusion's num_logits: {num_classes}, or another head"
            )

    def forward(self, vector: Tensor) -> Tensor:
        return vector


def _layers(input_dim: int, output_dim: int, hidden_dim: int | None, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    if hidden_dim is not None:
        layers += [nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim or input_dim, output_dim))
