"""What training minimises."""

from __future__ import annotations

from torch import Tensor, nn

from mmemo.labels import UNLABELLED


class CrossEntropy(nn.Module):
    """Cross-entropy over the labelled utterances of a batch.

    Args:
        label_smoothing: Probability moved from the label to all classes alike, in [0, 1).

    Shape:
        logits ``(batch, num_classes)``, target ``(batch,)`` int64, ``labels.UNLABELLED`` where there is no label
        -> scalar; 0 when no utterance is labelled
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        total = nn.functional.cross_entropy(
            logits, target, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (target != UNLABELLED).sum().clamp(min=1)
