"""Several losses combined into one, with fixed or learned weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmemo.losses.supervised import CountsClasses, Loss, ModelOutput, Targets


class WeightedSum(nn.Module):
    """Sums several losses with fixed weights.

    Args:
        losses: The losses.
        weights: One weight per loss, 0 or more. Defaults to 1 for each.

    Raises:
        ValueError: There are no losses, a weight is negative, or there is not one weight per loss.

    Shape:
        output and batch of the losses ``(batch, ...)`` -> scalar

    Example:
        >>> from mmemo.losses import CCCLoss, CrossEntropy
        >>> WeightedSum([CrossEntropy(), CCCLoss()], weights=[1.0, 0.5]).required_labels
        ('emotion', 'dimensions')
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = weights or [1.0] * len(losses)
        if not losses or len(self.weights) != len(losses) or min(self.weights) < 0:
            raise ValueError(
                f"WeightedSum: {len(losses)} losses and weights {self.weights}, expected one of 0 or more for each"
            )
        checked = _checked(losses)
        self.required_labels = _union(loss.required_labels for loss in checked)
        self.trained_heads = _union(loss.trained_heads for loss in checked)

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        terms = [weight * loss(output, batch) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum()


class UncertaintyWeighted(nn.Module):
    """Sums several losses with learned weights, each the inverse of the loss's noise variance.

    Follows Kendall et al. 2018, eq. 10 in the form of section 3.3, <https://arxiv.org/abs/1705.07115>.

    Args:
        losses: The losses.

    Raises:
        ValueError: There are no losses.

    Shape:
        output and batch of the losses ``(batch, ...)`` -> scalar

    Example:
        >>> from mmemo.losses import CCCLoss, CrossEntropy
        >>> UncertaintyWeighted([CrossEntropy(), CCCLoss()]).log_variances.tolist()
        [0.0, 0.0]
    """

    def __init__(self, losses: list[nn.Module]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("UncertaintyWeighted: expected at least one loss")
        self.losses = nn.ModuleList(losses)
        self.log_variances = nn.Parameter(torch.zeros(len(losses)))
        checked = _checked(losses)
        self.required_labels = _union(loss.required_labels for loss in checked)
        self.trained_heads = _union(loss.trained_heads for loss in checked)

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        terms = torch.stack([loss(output, batch) for loss in self.losses])
        labelled = terms.detach() != 0  # a loss without labels in this batch must not move its weight
        return ((torch.exp(-self.log_variances) * terms + self.log_variances / 2) * labelled).sum()


def set_class_counts(loss: nn.Module, counts: Tensor) -> None:
    """Passes the class counts to a loss and to the losses that it combines.

    Args:
        loss: The loss.
        counts: Number of training rows of each class ``(num_classes,)``.

    Raises:
        ValueError: A loss has a fixed number of class weights that differs from the number of classes.
    """
    for part in loss.modules():
        if isinstance(part, CountsClasses):
            part.set_class_counts(counts)


def _checked(losses: Sequence[nn.Module]) -> list[Loss]:
    """The modules, typed as `Loss`; raises ValueError for another module."""
    checked: list[Loss] = []
    for loss in losses:
        if not isinstance(loss, Loss):
            raise ValueError(f"{type(loss).__name__} is not a loss; expected one of mmemo.losses")
        checked.append(loss)
    return checked


def _union(values: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All values, each once, in order."""
    return tuple(dict.fromkeys(value for group in values for value in group))
