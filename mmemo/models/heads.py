"""One vector per utterance -> what is predicted of it."""

from __future__ import annotations

from torch import Tensor, nn


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
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden_dim is not None:
            layers += [nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(hidden_dim or input_dim, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, vector: Tensor) -> Tensor:
        return self.layers(vector)
