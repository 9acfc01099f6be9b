"""Prediction heads: fused vector -> class scores, or valence, arousal and dominance."""

from __future__ import annotations

import torch
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


class DiscriminantHead(nn.Module):
    """A linear head whose weights are computed, not learned: linear discriminant analysis with a shrunk covariance.

    Each group of features, such as a layer, has its own analysis, and their scores are averaged. See
    ``mmemo.training.ClosedFormSystem``. The shrinkage follows Friedman 1989, eq. 18,
    <https://doi.org/10.1080/01621459.1989.10478752>.

    Args:
        input_dim: Size of the fused vector.
        num_classes: Number of classes.
        num_groups: Number of groups of equal size that the vector consists of.
        shrinkage: Share of the identity in the covariance within classes, in (0, 1].

    Raises:
        ValueError: The vector cannot be divided into the groups, or the shrinkage is out of range.

    Shape:
        vector ``(batch, input_dim)`` -> logits ``(batch, num_classes)``

    Example:
        >>> head = DiscriminantHead(input_dim=4, num_classes=2)
        >>> target = torch.arange(100) % 2
        >>> head.fit(torch.randn(100, 4) + 5 * target[:, None], target)
        >>> head(torch.tensor([[0.0] * 4, [5.0] * 4])).argmax(1)
        tensor([0, 1])
    """

    def __init__(self, input_dim: int, num_classes: int, num_groups: int = 1, shrinkage: float = 0.3) -> None:
        super().__init__()
        if num_groups < 1 or input_dim % num_groups:
            raise ValueError(f"DiscriminantHead: {input_dim} features cannot be divided into {num_groups} groups")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"DiscriminantHead(shrinkage={shrinkage}), expected above 0, at most 1")
        self.num_groups = num_groups
        self.shrinkage = shrinkage
        self.linear = nn.Linear(input_dim, num_classes).requires_grad_(False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def fit(self, vectors: Tensor, target: Tensor, weights: Tensor | None = None) -> None:
        """Computes the weights.

        Args:
            vectors: Fused vectors ``(utterance, input_dim)``.
            target: Class indices ``(utterance,)``; every class occurs.
            weights: Weight of each utterance ``(utterance,)``. Defaults to 1.
        """
        weights = torch.ones(len(vectors)).to(vectors) if weights is None else weights.to(vectors)
        membership = nn.functional.one_hot(target, self.linear.out_features) * weights[:, None]
        shares = membership / membership.sum(0)  # (utterance, class)
        scale = (weights / weights.sum()).sqrt()[:, None]
        coefficients, constants = [], []
        for group in vectors.chunk(self.num_groups, dim=1):
            means = shares.T @ group  # (class, dim)
            residual = (group - means[target]) * scale
            covariance = residual.T @ residual
            identity = torch.eye(len(covariance)).to(covariance) * covariance.diagonal().mean()
            shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * identity
            solved = torch.linalg.solve(shrunk, means.T).T  # (class, dim)
            coefficients.append(solved)
            constants.append(-0.5 * (solved * means).sum(1))
        self.linear.weight.copy_(torch.cat(coefficients, dim=1) / self.num_groups)
        self.linear.bias.copy_(torch.stack(constants).mean(0))

    def forward(self, vector: Tensor) -> Tensor:
        logits: Tensor = self.linear(vector)
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
