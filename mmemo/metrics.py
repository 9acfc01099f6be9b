"""Metrics of emotion classes and of affect dimensions.

Unweighted average recall comes first, since emotion corpora are unbalanced.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.regression import ConcordanceCorrCoef

from mmemo.labels import DIMENSIONS, UNLABELLED

warnings.filterwarnings("ignore", ".*compute.* method of metric .* was called before the.*")


class UnweightedAverageRecall(MulticlassConfusionMatrix):
    """Unweighted average recall (UAR): the mean of the recalls of all classes (Schuller et al. 2009).

    Classes without utterances do not count, as in scikit-learn's ``balanced_accuracy_score``. The macro recall of
    torchmetrics would count such a class as 0 as soon as it is predicted once.

    Shape:
        logits ``(batch, num_classes)``, target ``(batch,)`` int64 -> scalar in [0, 1]

    Example:
        >>> uar = UnweightedAverageRecall(num_classes=2)
        >>> uar(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
        tensor(0.7500)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        counts = super().compute().float()
        totals = counts.sum(1)
        present = totals > 0
        return (counts.diagonal()[present] / totals[present]).mean() if present.any() else torch.tensor(float("nan"))


def emotion_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Builds UAR, accuracy, macro F1 and weighted F1 over the labelled utterances.

    Args:
        num_classes: Number of classes.
        prefix: Prefix of the metric names, such as ``val/``.
    """
    return MetricCollection(
        {
            "uar": UnweightedAverageRecall(num_classes, ignore_index=UNLABELLED),
            "accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED),
            "macro_f1": MulticlassF1Score(num_classes, average="macro", ignore_index=UNLABELLED),
            "weighted_f1": MulticlassF1Score(num_classes, average="weighted", ignore_index=UNLABELLED),
        },
        prefix=prefix,
        compute_groups=False,
    )


def confusion_matrix(num_classes: int) -> MulticlassConfusionMatrix:
    """Builds the counts ``(true class, predicted class)`` over the labelled utterances.

    Args:
        num_classes: Number of classes.
    """
    return MulticlassConfusionMatrix(num_classes, ignore_index=UNLABELLED)


class DimensionMetrics(nn.Module):
    """Concordance correlation coefficient (Lin 1989) and mean absolute error of each dimension, and their means.

    Args:
        prefix: Prefix of the metric names, such as ``val/``.

    Shape:
        predicted ``(batch, 3)``, target ``(batch, 3)``; NaN marks missing labels
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.ccc = nn.ModuleList(ConcordanceCorrCoef() for _ in DIMENSIONS)
        self.mae = nn.ModuleList(MeanAbsoluteError() for _ in DIMENSIONS)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds a batch; utterances without a label do not count."""
        for index in range(len(DIMENSIONS)):
            present = target[:, index].isfinite()
            if present.any():
                for metric in (self.ccc[index], self.mae[index]):
                    cast(Metric, metric).update(predicted[present, index].float(), target[present, index])

    def compute(self) -> dict[str, Tensor]:
        """Computes all metrics over all processes.

        Returns:
            Metric name -> value. A dimension is left out if its value is undefined: CCC needs two labelled utterances,
            MAE one. The mean CCC is 0 if no dimension has one.
        """
        values: dict[str, Tensor] = {}
        for kind, metrics in (("ccc", self.ccc), ("mae", self.mae)):
            defined = []
            for dimension, metric in zip(DIMENSIONS, metrics, strict=True):
                value = cast(Metric, metric).compute()  # on every process, since compute() synchronises them
                if value.isfinite():
                    values[f"{self.prefix}{kind}_{dimension}"] = value
                    defined.append(value)
            if defined:
                values[f"{self.prefix}{kind}"] = torch.stack(defined).mean()
            elif kind == "ccc":
                values[f"{self.prefix}{kind}"] = torch.tensor(0.0)  # checkpoint selection always needs a value
        return values

    def reset(self) -> None:
        """Discards all batches."""
        for metric in (*self.ccc, *self.mae):
            cast(Metric, metric).reset()
