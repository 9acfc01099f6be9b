"""Metrics of the heads that a model has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.metrics import DimensionMetrics, confusion_matrix, emotion_metrics
from mmemo.models.emotion_model import EmotionModel, EmotionOutput


class HeadMetrics(nn.Module):
    """Class metrics for a class head, and dimension metrics for a dimension head.

    Args:
        model: Model whose heads are evaluated.
        prefix: Prefix of each metric's name, such as ``val/``.
    """

    def __init__(self, model: EmotionModel, prefix: str) -> None:
        super().__init__()
        self.classes = emotion_metrics(len(model.classes), prefix) if model.head is not None else None
        self.dimensions = DimensionMetrics(prefix) if model.dimension_head is not None else None

    def update(self, output: EmotionOutput, batch: EmotionBatch) -> None:
        """Adds a batch: logits ``(batch, num_classes)`` and dimensions ``(batch, 3)`` with their labels."""
        if self.classes is not None:
            self.classes.update(output.logits, batch.target)
        if self.dimensions is not None:
            assert output.dimensions is not None
            self.dimensions.update(output.dimensions, batch.dimensions)

    def compute(self) -> dict[str, Tensor]:
        """Returns name -> value, a scalar ``()``, over all processes."""
        values = {} if self.classes is None else dict(self.classes.compute())
        return values | ({} if self.dimensions is None else self.dimensions.compute())

    def reset(self) -> None:
        """Removes all batches."""
        for metrics in (self.classes, self.dimensions):
            if metrics is not None:
                metrics.reset()


class ConditionMetrics(nn.Module):
    """Test metrics with all modalities and, if asked for, from each modality alone; confusions with all modalities.

    Args:
        model: Model whose heads are evaluated.
        conditions: Names of the conditions; the first is the empty name, for all modalities.
    """

    def __init__(self, model: EmotionModel, conditions: Sequence[str]) -> None:
        super().__init__()
        prefixes = [f"test_{condition}/" if condition else "test/" for condition in conditions]
        self.conditions = nn.ModuleList(HeadMetrics(model, prefix) for prefix in prefixes)
        self.matrix = confusion_matrix(len(model.classes)) if model.classes else None
        self.confusion: Tensor | None = None  # (true class, predicted class), after compute()

    def update(self, outputs: Mapping[str, EmotionOutput], batch: EmotionBatch) -> None:
        """Adds a batch.

        Args:
            outputs: Condition -> output, with logits ``(batch, num_classes)`` and dimensions ``(batch, 3)``.
            batch: Its utterances.
        """
        for metrics, output in zip(self.conditions, outputs.values(), strict=True):
            cast(HeadMetrics, metrics).update(output, batch)
        logits = outputs[""].logits
        if self.matrix is not None and logits is not None:
            self.matrix.update(logits, batch.target)

    def compute(self) -> dict[str, Tensor]:
        """Returns name -> value, a scalar ``()``, over all processes, and starts again."""
        values: dict[str, Tensor] = {}
        for metrics in self.conditions:
            values |= cast(HeadMetrics, metrics).compute()
            cast(HeadMetrics, metrics).reset()
        if self.matrix is not None:
            self.confusion = self.matrix.compute().cpu()
            self.matrix.reset()
        return values
