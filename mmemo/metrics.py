"""The figures we report: unweighted average recall first, since emotion corpora are unbalanced; CCC of dimensions."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.regression import ConcordanceCorrCoef

from mmemo.labels import DIMENSIONS, UNLABELLED

warnings.filterwarnings("ignore", ".*compute.* method of metric .* was called before the.*")


class UnweightedAverageRecall(MulticlassConfusionMatrix):
    """UAR: the mean over classes of the share of their utterances that is recognised (Schuller et al. 2009).

    Classes without an utterance do not count, as in scikit-learn's ``balanced_accuracy_score``; torchmetrics'
    macro recall would count a class as 0 once it is predicted anywhere.

    Shape:
        logits ``(batch, num_classes)``, target ``(batch,)`` int64 -> scalar in [0, 1]
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        counts = super().compute().float()
        total = counts.sum(1)
        present = total > 0
        return (counts.diagonal()[present] / total[present]).mean() if present.any() else torch.tensor(float("nan"))


def emotion_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """UAR, accuracy, macro and weighted F1 over labelled utterances.

    Args:
        num_classes: Number of classes.
        prefix: Put before each name, such as ``val/``.
    """
    ignore: dict[str, Any] = {"num_classes": num_classes, "ignore_index": UNLABELLED}
    return MetricCollection(
        {
            "uar": UnweightedAverageRecall(**ignore),
            "accuracy": MulticlassAccuracy(average="micro", **ignore),
            "macro_f1": MulticlassF1Score(average="macro", **ignore),
            "weighted_f1": MulticlassF1Score(average="weighted", **ignore),
        },
        prefix=prefix,
        compute_groups=False,
    )


def confusion_matrix(num_classes: int) -> MulticlassConfusionMatrix:
    """Counts ``(true class, predicted class)`` over labelled utterances.

    Args:
        num_classes: Number of classes.
    """
    return MulticlassConfusionMatrix(num_classes, ignore_index=UNLABELLED)


class DimensionMetrics(nn.Module):
    """Concordance correlation coefficient (Lin 1989) and mean absolute error of each dimension, and their means.

    Args:
        prefix: Put before each name, such as ``val/``.

    Shape:
        predicted ``(batch, 3)``, target ``(batch, 3)``, NaN where there is no label
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.ccc = nn.ModuleList(ConcordanceCorrCoef() for _ in DIMENSIONS)
        self.mae = nn.ModuleList(MeanAbsoluteError() for _ in DIMENSIONS)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Takes a batch in; utterances without a label do not count."""
        for number in range(len(DIMENSIONS)):
            present = target[:, number].isfinite()
            if present.any():
                for part in (self.ccc[number], self.mae[number]):
                    cast(Metric, part).update(predicted[present, number].float(), target[present, number])

    def compute(self) -> dict[str, Tensor]:
        """Name -> value, over all processes; dimensions without two labelled utterances are left out."""
        values: dict[str, Tensor] = {}
        for kind, metrics in (("ccc", self.ccc), ("mae", self.mae)):
            found = []
            for name, metric in zip(DIMENSIONS, metrics, strict=True):
                value = cast(Metric, metric).compute()  # on every process, or they would wait
                if value.isfinite():
                    values[f"{self.prefix}{kind}_{name}"] = value
                    found.append(value)
            if found:
                values[f"{self.prefix}{kind}"] = torch.stack(found).mean()
            elif kind == "ccc":
                values[f"{self.prefix}{kind}"] = torch.tensor(0.0)  # nothing to agree with; the epoch is chosen by it
        return values

    def reset(self) -> None:
        """Forgets all batches."""
        for part in (*self.ccc, *self.mae):
            cast(Metric, part).reset()
