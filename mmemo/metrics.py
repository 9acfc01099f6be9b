"""The figures we report: unweighted average recall first, since emotion corpora are unbalanced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from mmemo.labels import UNLABELLED


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
